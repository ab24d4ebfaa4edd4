"""How a command ends: an error is one sentence on stderr and exit code 2."""

import atexit
import errno
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mechprobe.cli.limited_memory import check_room_for_openblas, is_limited, watched
from mechprobe.errors import EndedElsewhereError, OutOfMemoryError, UserError, first_line, lack_of_memory

# At its end Python would look for garbage in all of torch and transformers, for a second or two.
atexit.register(gc.freeze)
INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAYS_FULL = ("no space left", "disk quota exceeded")


def _unless_memory(show: Callable[..., object], error: int | str) -> Callable[..., None]:
    """A hook for errors that nothing catches, which is silent where memory ran out; ``error`` is its place in the arguments."""

    def hook(*raised: Any) -> None:
        value = raised[error] if isinstance(error, int) else getattr(raised[0], error)
        if lack_of_memory(value) is None:
            show(*raised)

    return hook


check_room_for_openblas()  # also in a worker, which loads the libraries again
if "--multiprocessing-fork" in sys.orig_argv:  # a worker; the command that started it says that it was ended
    sys.excepthook = _unless_memory(sys.excepthook, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 an error that the user can fix, 130 interrupted.

    Args:
        argv: Its arguments; None takes those of this process.
    """
    return watched(lambda: _ended(sys.argv[1:], last=True)) if argv is None else _ended(argv)


def _ended(argv: Sequence[str], *, last: bool = False) -> int:
    """The exit code of a command; after the ``last`` one the process ends."""
    try:
        with _quiet_without_memory(last=last):
            return _run(list(argv))
    except EndedElsewhereError as error:
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a Rust library does not derive from Exception
        sentence = _sentence(error)
        if sentence is None:
            raise
        return _fail(sentence)


def _run(argv: list[str]) -> int:
    # Imported here, because memory can run out even for the imports of the commands.
    import typer

    from mechprobe.cli.app import app, spread
    from mechprobe.launcher import expect_end
    from mechprobe.memory import forget_limits
    from mechprobe.progress import forget_told

    expect_end()
    forget_told()
    forget_limits()
    try:
        code = app(spread(argv), standalone_mode=False)
    except typer.Abort:
        return _interrupted()
    if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code
        return _interrupted()
    return code if isinstance(code, int) else 0


def _sentence(error: BaseException) -> str | None:
    """The message for an error that the user can fix; None for a defect of mechprobe."""
    lack = lack_of_memory(error)
    if lack is None and is_limited() and _is_lost(error):
        lack = error
    if isinstance(error, OutOfMemoryError) or (isinstance(error, UserError) and lack is None):
        return str(error)
    if isinstance(error, UserError) and lack is not None:  # it may blame a file that is sound
        return f"{str(error).removesuffix('.')}; memory ran out there ({first_line(lack)}), so free memory first."
    if lack is not None:
        return (
            f"memory ran out ({first_line(lack)}); free memory, raise its limit, or lower the batch size or the dtype of the models, "
            "and run the same command again."
        )
    if type(error).__name__ == "NoArgsIsHelpError":
        return "no command was given; see `mechprobe --help`."
    usage = getattr(error, "format_message", None)
    if usage is not None:
        context = getattr(error, "ctx", None)
        command = getattr(context, "command_path", None) or "mechprobe"
        return f"{usage().rstrip('.')}; see `{command} --help`."
    return _of_system(error)


def _is_lost(error: BaseException) -> bool:
    """Whether C code lost the error of an allocation, or torch is being unloaded, because OpenMP ends the process without a thread."""
    return isinstance(error, SystemError) or "unknown parameter type" in str(error)


def _of_system(error: BaseException) -> str | None:
    number, path = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    if number in _FULL or any(words in str(error).lower() for words in _SAYS_FULL):
        return f"the disk is full{f' at {path}' if path else ''}; free space and run the same command again."
    if number == errno.EAGAIN:
        return "the system allows no more processes; raise `ulimit -u`, or end others, and run the same command again."
    return None if path is None else f"{path}: {error.strerror}."  # type: ignore[attr-defined]


@contextmanager
def _quiet_without_memory(*, last: bool = False) -> Iterator[None]:
    """Without memory, also threads and destructors fail. Their tracebacks are not shown, because the command's sentence says it.

    After the ``last`` command what runs at the end of the process fails, too.
    """
    before = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = (_unless_memory(hook, "exc_value") for hook in before)
    try:
        yield
    finally:
        if not last:
            sys.unraisablehook, threading.excepthook = before


def _fail(sentence: str) -> int:
    launcher = sys.modules.get("mechprobe.launcher")  # absent where memory ran out for the imports
    if launcher is None or launcher.speaks():
        sys.stderr.write(f"mechprobe: {' '.join(sentence.split())}\n")
    return 2


def _interrupted() -> int:
    if os.environ.get("RANK", "0") == "0":  # Ctrl-C reaches all processes of a launcher
        sys.stderr.write("mechprobe: interrupted; run the same command again to resume.\n")
    return INTERRUPTED
