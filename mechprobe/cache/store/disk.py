"""Durable files: HDF5 written atomically, locks between processes, and disk errors as one sentence."""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mechprobe.errors import StoreError
from mechprobe.files import sha256_file
from sae_training.atomic import atomic_path

logger = logging.getLogger(__name__)


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one sentence. Finished files stay usable.

    Raises:
        StoreError: The disk is full, a file is too large, or the path is not writable.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 raises RuntimeError when closing a file fails
        text, number = str(error), getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "Disk quota" in text
        if full:
            raise StoreError(f"The disk is full at {path}; free space and run the command again to resume.") from None
        if number == errno.EFBIG or "File too large" in text:
            raise StoreError(
                f"{path} is larger than the file system or `ulimit -f` allows; raise the limit and run the same command "
                "again to resume, or lower shard_rows."
            ) from None
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"{path} cannot be written: {os.strerror(number)}; give another --out.") from None
        raise


def write_hdf5(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> str:
    """Write contiguous datasets to one HDF5 file, atomically and durably; returns the sha256 of the file.

    In ``attributes``, the key ``name:key`` sets attribute ``key`` of dataset ``name``; other keys belong to the file.

    Raises:
        StoreError: The disk is full or the path is not writable.
    """
    with translate_disk_errors(path), atomic_path(path) as partial:
        _require_room(partial, sum(array.nbytes for array in arrays.values()))
        with h5py.File(partial, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
            for key, value in attributes.items():
                owner, _, name = key.rpartition(":")
                (file[owner] if owner else file).attrs[name] = value
        return sha256_file(partial)


def _require_room(path: Path, n_bytes: int) -> None:
    """Reserve ``n_bytes`` for a file, so that a full disk raises `OSError` before HDF5 opens it.

    When HDF5 fails to close a file, it leaves objects behind that can crash the interpreter at exit.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(n_bytes, 1))


@contextmanager
def sole_writer(folder: Path, *, part: bool = False) -> Iterator[None]:
    """Lock a store against a second writing process. The system releases the lock when the process ends.

    A process with ``part`` writes only its own shards, so several of them may write at the same time.

    Raises:
        StoreError: Another process is writing.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if part else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"Another process is writing {folder}; wait for it, or give another --out.") from None
        except OSError:  # a file system without locks
            logger.warning("%s cannot be locked; do not let two processes write to it", folder)
        yield
    finally:
        os.close(handle)


def free_bytes(path: Path) -> int:
    """Free bytes on the file system that will hold ``path``."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
