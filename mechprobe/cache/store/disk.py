"""Durable files: HDF5 written atomically, and disk errors as one sentence."""

import errno
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
        with h5py.File(partial, "w", locking=False) as file:  # no other process knows the name of a partial file
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
            for key, value in attributes.items():
                owner, _, name = key.rpartition(":")
                (file[owner] if owner else file).attrs[name] = value
        return sha256_file(partial)


@contextmanager
def reading_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a finished file without a lock, because it is never written again and some file systems have no locks.

    Errors inside the block that a damaged file causes are translated, too.

    Raises:
        StoreError: The file is missing, cannot be read, or is damaged.
    """
    try:
        with _open_unlocked(path) as file:
            yield file
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; make the store again with `mechprobe cache`.") from None
    except (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        # HDF5 sets no error number for a file that it can read but not understand.
        if number := getattr(error, "errno", None):
            raise StoreError(f"{path} cannot be read: {os.strerror(number)}; the store itself may be intact.") from None
        raise StoreError(f"{path} is damaged ({type(error).__name__}); make the store again with --force.") from None


def map_dataset(path: Path, dataset: Any) -> np.ndarray:
    """A dataset as a read-only array over its file, which is read when it is used; an empty dataset has no place there.

    Raises:
        ValueError: The dataset is not contiguous.
    """
    if not dataset.size:
        return np.empty(dataset.shape, dtype=dataset.dtype)
    offset = dataset.id.get_offset()
    if offset is None:
        raise ValueError("the dataset is not contiguous")
    mapped = np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    return np.asarray(mapped)  # a slice of np.memmap itself costs several times as much


def _open_unlocked(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "file locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # this process has it open with a lock; HDF5 wants one mode for both


def _require_room(path: Path, n_bytes: int) -> None:
    """Reserve ``n_bytes`` for a file, so that a full disk raises `OSError` before HDF5 opens it.

    When HDF5 fails to close a file, it leaves objects behind that can crash the interpreter at exit.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(n_bytes, 1))


def free_bytes(path: Path) -> int:
    """Free bytes on the file system that will hold ``path``."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
