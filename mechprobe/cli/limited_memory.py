"""Commands under a limit of the address space (``ulimit -v``, which some batch systems set).

Most libraries raise an error where they get no memory, which becomes a sentence. Some end the process in C or C++, and OpenBLAS can
try for ever. So a limited command runs in a process of its own, which this one watches, and OpenBLAS is loaded only where it has room.
"""

import mmap
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from mechprobe.errors import OutOfMemoryError

_CHILD = "MECHPROBE_WATCHED"
"""Environment variable: the descriptor of the pipe on which a watched process sends its exit code."""
_PR_SET_PDEATHSIG = 1
"""Linux: a process gets a signal when the one that started it ends."""
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OUTSIDE = (signal.SIGKILL, *_PASSED_ON)
"""Signals by which others end a process."""
_WITH_OPENBLAS = (("numpy._core._multiarray_umath",), ("scipy.linalg._fblas", "scipy.special._ufuncs"))
"""The modules that load an OpenBLAS: that of numpy, and that of scipy."""
_LIBRARY, _THREAD = 64 << 20, 40 << 20
"""Bytes of the library with the modules around it, and of a buffer and a stack for each thread, as measured with numpy 2.4 and scipy
1.17 on x86-64."""


class RoomForOpenBlas:
    """A finder of modules that finds none, and raises where OpenBLAS would not get its memory."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        """Check the room before a module is loaded that brings OpenBLAS.

        Raises:
            OutOfMemoryError: The limit leaves too little address space for it.
        """
        group = next((names for names in _WITH_OPENBLAS if name in names), ())
        if not group or any(each in sys.modules for each in group):
            return
        if not _is_free(size := _LIBRARY + _threads() * _THREAD):
            fewer = ", or set OPENBLAS_NUM_THREADS=1," if _threads() > 1 else ""
            raise OutOfMemoryError(
                f"memory ran out: {name.partition('.')[0]} needs {size >> 20} MiB of address space to load. Raise the limit "
                f"(`ulimit -v`){fewer} and run the same command again."
            )


def check_room_for_openblas() -> None:
    """Check from now on, where the address space of this process has a limit."""
    if is_limited() and RoomForOpenBlas not in sys.meta_path:
        sys.meta_path.insert(0, RoomForOpenBlas)


def watched(command: Callable[[], int]) -> int:
    """Run a command of this process: here, or where the address space has a limit in a process that this one watches.

    Returns:
        Its exit code; 2 where a library ended it, which one sentence says.
    """
    told = os.environ.pop(_CHILD, "")
    if told.isdecimal():
        code = 1
        try:
            code = command()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            raise
        finally:
            os.write(int(told), bytes([code]))
        return code
    again = sys.argv[0] not in ("", "-")  # a program from stdin cannot be read twice
    if not is_limited() or not again or "RANK" in os.environ:  # a launcher watches its processes itself
        return command()
    return _watch()


def _watch() -> int:
    """Start this process again, pass signals on to it, and tell how it ended."""
    import ctypes
    import subprocess

    system = ctypes.CDLL(None)

    def begin() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        system.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    reader, writer = os.pipe()
    # The terminal sends Ctrl-C to both; what others send to this process alone is passed on.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, _CHILD: str(writer)}, pass_fds=(writer,), preexec_fn=begin,
    )  # fmt: skip
    os.close(writer)
    while child.poll() is None:
        found = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        if found.si_signo != signal.SIGCHLD and found.si_code <= 0:  # not from the kernel
            child.send_signal(found.si_signo)
    os.set_blocking(reader, False)  # workers of an ended process may hold the pipe
    with suppress(BlockingIOError):
        if said := os.read(reader, 1):
            return said[0]
    ended = signal.Signals(-child.returncode) if child.returncode < 0 else None
    if ended is not None and ended in _OUTSIDE:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if ended != signal.SIGKILL:
            signal.signal(ended, signal.SIG_DFL)
        os.kill(os.getpid(), ended)
    how = ended.name if ended else f"exit code {child.returncode}"
    sys.stderr.write(
        f"mechprobe: a library ended the command ({how}), as some do where memory runs out. Raise the limit of the address space "
        "(`ulimit -v`), or lower the batch size, and run the same command again.\n"
    )
    return 2


def is_limited() -> bool:
    """Whether the address space of this process has a limit."""
    if sys.platform != "linux":  # others have no such limit, or do not enforce it
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _threads() -> int:
    """Threads that OpenBLAS will start."""
    given = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    return int(given) if given.isdecimal() and int(given) else os.cpu_count() or 1


def _is_free(size: int) -> bool:
    with suppress(OSError, MemoryError):
        mmap.mmap(-1, size).close()
        return True
    return False
