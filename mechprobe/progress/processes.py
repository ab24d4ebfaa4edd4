"""Which of several processes speaks."""

import multiprocessing
import os

_process = os.getpid()


def is_first_process() -> bool:
    """Whether this process shows progress: no copy or worker of another one, and of several ranks the first."""
    return _is_own() and os.environ.get("RANK", "0") in ("", "0")


def other_rank() -> str:
    """The number of this process among several ranks; empty for the first, and for copies and workers."""
    return "" if is_first_process() or not _is_own() else os.environ["RANK"]


def _is_own() -> bool:
    return os.getpid() == _process and multiprocessing.parent_process() is None
