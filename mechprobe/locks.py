"""Locks on folders against a second writing process; the system releases them when a process ends."""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mechprobe.errors import MechprobeError, StoreError

logger = logging.getLogger(__name__)

_without_locks: set[int] = set()
"""Devices of file systems without locks that a warning has named."""


@contextmanager
def folder_lock(folder: Path, operation: int) -> Iterator[Callable[[], None]]:
    """Hold a lock (``fcntl.LOCK_*``) on a folder; yields a function that releases it early.

    On a file system without locks the block runs without one, and one warning says so.

    Raises:
        BlockingIOError: With ``LOCK_NB``, another process holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, operation)
        except BlockingIOError:
            raise
        except OSError as error:
            device = os.fstat(handle).st_dev
            if device not in _without_locks:
                text = "%s cannot be locked (%s); do not let two processes write to it"
                logger.warning(text, folder, error.strerror)
                _without_locks.add(device)
            yield lambda: None
        else:
            yield lambda: fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


@contextmanager
def sole_writer(folder: Path, *, part: bool = False, error: type[MechprobeError] = StoreError) -> Iterator[None]:
    """Lock a folder against a second writing process; raises ``error`` where there is one.

    A process with ``part`` writes only its own files, so several of them may write at the same time.
    """
    try:
        with folder_lock(folder, (fcntl.LOCK_SH if part else fcntl.LOCK_EX) | fcntl.LOCK_NB):
            yield
    except BlockingIOError:
        raise error(f"Another process is writing {folder}; wait for it, or give another --out.") from None
