"""Atomic writes: a reader sees the old file or the new one, never a part, also after a power cut.

Data goes to a temporary path in the same folder, is flushed to the disk, and is then renamed.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

PARTIAL = ".partial"
"""Suffix of every temporary path."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; several processes may write the same path, and the last one wins.

    Args:
        path: File to write. Missing parent folders are created.
        data: Content of the file.

    Raises:
        OSError: The file cannot be written. An older file is then unchanged.
    """
    with atomic_path(path, shared=True) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_path(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path``, and move what the body writes there to ``path``.

    The body writes one file, or makes one folder of files, and closes all of them. If it raises, the temporary path is
    removed and ``path`` stays as it was.

    Args:
        path: File or folder to write. Missing parent folders are created. A file is replaced; a folder must not exist.
        shared: Whether other processes may write ``path`` at the same time. The temporary name is then unique.
            Otherwise it is ``<name>.partial``, and what a killed process left there is removed first.

    Yields:
        The temporary path, which does not exist yet.

    Raises:
        OSError: The parent folder cannot be created, or the data cannot be flushed or moved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f".{uuid4().hex[:12]}" if shared else ""
    temporary = path.with_name(f"{path.name}{unique}{PARTIAL}")
    _remove(temporary)
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            sync(written)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
