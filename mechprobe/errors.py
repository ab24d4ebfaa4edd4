"""Errors that a user can mend: one sentence each, exit code 2, no traceback on the command line.

MechprobeError (a `sae_training.errors.UserError`)
├── ConfigError      a setting is unknown, missing or contradicts another
├── InputError       a file of prompts, tasks or outcomes cannot be used
├── ModelError       a model or tokenizer cannot be loaded or does not fit the family
├── SiteError        a site does not exist in the models
├── StoreError       an activation store is damaged, incomplete or of other models
│   └── EndedElsewhereError  another process of the same command failed, and said why
├── ArtifactError    a stage folder is missing, unfinished or made from other inputs
├── SelectionError   a feature selection is empty, out of range or malformed
├── LabelError       a labeler failed, or gave no text
└── DependencyError  an optional package is not installed
"""

from typing import Any

from sae_training.errors import UserError


class MechprobeError(UserError):
    """Base of the errors of mechprobe that a user can correct; the message is the one sentence they see."""


class ConfigError(MechprobeError):
    """A setting is unknown, missing or contradicts another."""


class InputError(MechprobeError):
    """A file of prompts, tasks or outcomes cannot be used; the text names the file and line."""


class ModelError(MechprobeError):
    """A model or tokenizer cannot be loaded, or does not fit the others of its family."""


class SiteError(MechprobeError):
    """A site does not exist in the models, or its name cannot be read."""


class StoreError(MechprobeError):
    """An activation store is damaged, incomplete, or was made from other models."""


class EndedElsewhereError(StoreError):
    """Another process of the same command failed and has told the user why; this one ends in silence."""


class ArtifactError(MechprobeError):
    """A stage folder is missing, unfinished, not ours, or was made from other inputs."""


class SelectionError(MechprobeError):
    """A feature selection is empty, out of range, or malformed."""


class LabelError(MechprobeError):
    """A labeler failed or gave no text; what was labelled before is in ``labels``."""

    def __init__(self, message: str, labels: Any = None) -> None:
        super().__init__(message)
        self.labels = labels


class DependencyError(MechprobeError):
    """An optional package is needed and not installed."""
