"""Room for OpenBLAS under a limit of the address space (``ulimit -v``).

numpy and scipy each load an OpenBLAS. Where it gets no memory for its threads, that of numpy ends the process, and that of scipy tries
for ever.
"""

import mmap
import os
import sys

from mechprobe.errors import OutOfMemoryError

_WITH_OPENBLAS = ("numpy._core._multiarray_umath", "scipy.linalg._fblas")
"""The modules that load it first."""
_LIBRARY, _THREAD = 64 << 20, 40 << 20
"""Bytes of the library with the modules around it, and of a buffer and a stack for each thread, as measured with numpy 2.4 and scipy
1.17 on x86-64."""


class RoomForOpenBlas:
    """A finder of modules that finds none, and raises where OpenBLAS would not get its memory."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        """Check the room before a module is loaded that brings OpenBLAS.

        Raises:
            OutOfMemoryError: There is no room.
        """
        if name in _WITH_OPENBLAS and not _is_free(size := _LIBRARY + _threads() * _THREAD):
            raise OutOfMemoryError(
                f"memory ran out: {name.partition('.')[0]} needs {size >> 20} MiB of address space to load. Raise the limit "
                "(`ulimit -v`), or set OPENBLAS_NUM_THREADS=1, and run the same command again."
            )


def check_room_for_openblas() -> None:
    """Check from now on, where the address space of this process has a limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    if limited and RoomForOpenBlas not in sys.meta_path:
        sys.meta_path.insert(0, RoomForOpenBlas)


def _threads() -> int:
    """Threads that OpenBLAS will start."""
    given = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    return int(given) if given.isdecimal() and int(given) else os.cpu_count() or 1


def _is_free(size: int) -> bool:
    try:
        mmap.mmap(-1, size).close()
    except (OSError, MemoryError):
        return False
    return True
