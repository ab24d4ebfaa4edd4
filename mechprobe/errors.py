"""Errors that a user can correct. Each message is one sentence that says what is wrong, where, and how to fix it.

Their base is `sae_training.errors.UserError`, as for the errors of sae_training. The command line prints the message of
such an error without a traceback, and exits with code 2.
"""

from typing import Any

from sae_training.errors import UserError


class MechprobeError(UserError):
    """Base of the errors of mechprobe that a user can correct."""


class ConfigError(MechprobeError):
    """A setting is unknown, missing, or contradicts another."""


class InputError(MechprobeError):
    """A file of prompts, tasks or outcomes is unusable; the message names the file and line."""


class ModelError(MechprobeError):
    """A model or tokenizer cannot be loaded, or does not fit the others of its family."""


class SiteError(MechprobeError):
    """A site does not exist in the models, or its name is malformed."""


class StoreError(MechprobeError):
    """An activation store is damaged, incomplete, or was made from other models."""


class EndedElsewhereError(StoreError):
    """Another process of the same command failed and reported why; this process exits without a message."""


class ArtifactError(MechprobeError):
    """A stage folder is missing, unfinished, not written by mechprobe, or was made from other inputs."""


class OutOfMemoryError(MechprobeError):
    """Memory does not suffice for the smallest part of the work."""


class EndpointError(MechprobeError):
    """An inference server cannot be reached, refuses a request, or gives no usable answer."""


class SelectionError(MechprobeError):
    """A feature selection is empty, out of range, or malformed."""


BAD_INPUT = (ConfigError, InputError, ModelError, SelectionError, SiteError)
"""Errors that the same command would raise again, unlike a full disk."""


class LabelError(MechprobeError):
    """A labeler failed or returned no text.

    Attributes:
        labels: The labels from before the failure.
    """

    def __init__(self, message: str, labels: Any = None) -> None:
        super().__init__(message)
        self.labels = labels


class DependencyError(MechprobeError):
    """An optional package is needed but not installed."""


def first_line(error: BaseException) -> str:
    """Type and first line of another library's error, for use within a message of one sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:200]
