"""Errors that a user can correct. Each message is one sentence that says what is wrong, where, and how to fix it.

Their base is `sae_training.errors.UserError`, as for the errors of sae_training. The command line prints the message of
such an error without a traceback, and exits with code 2.
"""

import errno
from typing import Any

from sae_training.errors import UserError

_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "allocate memory",
    "unable to allocate",
    "memory allocation failed",
    "bad_alloc",
    "alloc_failed",
    "failed to map segment",
    "cannot map zero-fill",
    "unable to mmap",
    "can't start new thread",
    "resource temporarily unavailable",
)
"""What torch, numpy, HDF5, C++, Rust, the loader of shared libraries and Python say when the system refuses memory or a thread."""


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a device or this machine refuses memory or a thread."""
    return lack_of_memory(error) is not None


def lack_of_memory(error: BaseException | None) -> BaseException | None:
    """The error that says so: ``error``, or the one during whose handling it was raised; None if there is none.

    Libraries and checks of files turn any failure into one of their own, such as "the file is damaged".
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _refuses_memory(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def _refuses_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):  # those of numpy and pyarrow are MemoryErrors
        return True
    if isinstance(error, UserError):  # its text may quote a prompt
        return isinstance(error, OutOfMemoryError)
    if isinstance(error, OSError) and error.errno:
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)
