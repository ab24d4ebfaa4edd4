"""What a command says when memory, threads or the disk run out, at whatever depth."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer

from mechprobe.cli import app as table, main
from mechprobe.errors import ModelError, OutOfMemoryError, is_out_of_memory
from mechprobe.memory import in_parts, needing_memory
from tests.cli.memory_faults import ERRORS


class PanicException(BaseException):
    """Like pyo3's, which is no `Exception`."""


FULL = OSError(errno.ENOSPC, "No space left on device")
SAID = {
    "memory": MemoryError(),
    "thread": RuntimeError("can't start new thread"),
    "library": ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    "fork": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "file": OSError(errno.ENOMEM, "Cannot allocate memory", "model.safetensors"),
    "hdf5": OSError("Unable to open file (errno = 12, error message = 'Cannot allocate memory')"),
    "freetype": RuntimeError("FT_Open_Face failed with error 0x40: out of memory"),
    "safetensors": type("SafetensorError", (Exception,), {})("Error: Os { code: 12, message: \"Cannot allocate memory\" }"),
    "rust": PanicException('ThreadPoolBuildError { kind: IOError(Os { code: 11, message: "Resource temporarily unavailable" }) }'),
}  # fmt: skip


@pytest.fixture
def ends_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run a command that raises an error."""

    def run(error: BaseException) -> int:
        def fail() -> None:
            raise error

        app = typer.Typer()
        app.command("fail")(fail)
        app.command("other")(lambda: None)
        monkeypatch.setattr(table, "app", app)
        return main(["fail"])

    return run


@pytest.mark.parametrize("error", [*SAID.values(), *(make() for make in ERRORS.values())], ids=[*SAID, *ERRORS])
def test_every_lack_of_memory_is_one_sentence(
    error: BaseException, ends_with: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_out_of_memory(error)
    assert ends_with(error) == 2
    said = capsys.readouterr().err
    assert said.startswith("mechprobe: memory ran out (")
    assert said.count("\n") == 1


def test_a_message_that_blames_a_file_says_that_memory_ran_out(
    ends_with: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    error = ModelError("Model rl: the file is damaged; copy it again.")
    assert not is_out_of_memory(error)
    assert ends_with(error) == 2
    assert capsys.readouterr().err == "mechprobe: Model rl: the file is damaged; copy it again.\n"
    error.__context__ = RuntimeError("mmap: Cannot allocate memory")
    assert is_out_of_memory(error)
    assert ends_with(error) == 2
    assert "copy it again; memory ran out there (RuntimeError: mmap" in capsys.readouterr().err


@pytest.mark.parametrize("error", [FULL, RuntimeError("I/O error: Disk quota exceeded (os error 122)")])
def test_a_full_disk_is_one_sentence(
    error: Exception, ends_with: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(error) == 2
    assert capsys.readouterr().err == "mechprobe: the disk is full; free space and run the same command again.\n"


def test_a_defect_keeps_its_traceback(ends_with: Callable[[BaseException], int]) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ends_with(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_threads_without_memory_are_silent_and_others_are_not(
    ends_with: Callable[[BaseException], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda raised: shown.append(raised.exc_value))

    def fail() -> None:
        for error in (MemoryError(), ValueError("a defect")):

            def work(error: Exception = error) -> None:
                raise error

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    app = typer.Typer()
    app.command("fail")(fail)
    app.command("other")(lambda: None)
    monkeypatch.setattr(table, "app", app)
    assert main(["fail"]) == 0
    assert [str(error) for error in shown] == ["a defect"]


def test_work_that_cannot_be_halved_names_its_settings() -> None:
    said = r"Training: memory ran out \(MemoryError\); lower batch_size\.$"
    with pytest.raises(OutOfMemoryError, match=said), needing_memory("Training", "lower batch_size"):
        raise MemoryError
    with pytest.raises(ValueError, match="other"), needing_memory("Training", "lower batch_size"):
        raise ValueError("other")


def test_work_inside_other_work_is_halved_once() -> None:
    tried: list[int] = []

    def inner(part: slice) -> int:
        tried.append(part.stop - part.start)
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="Inner: one of the rows alone"):
        in_parts(lambda _part: in_parts(inner, 4, what="Inner", unit="rows"), 8, what="Outer")
    assert tried == [4, 2, 1]


def test_a_worker_that_was_ended_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechprobe.interventions.conditions import batches
    from mechprobe.interventions.conditions.runner import Runner

    class Pool:
        def __init__(self, *_args: object, **_options: object) -> None:
            self.closed = False

        def submit(self, *_args: object) -> None:
            raise BrokenProcessPool("A process in the process pool was terminated abruptly")

        def shutdown(self, **_options: object) -> None:
            self.closed = True

    monkeypatch.setattr(batches, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(
        batches, "DraftingRunner", lambda _runner: type("Runner", (), {"prepare": lambda _self: None})()
    )
    monkeypatch.setattr(
        batches, "batches", lambda _runner, _conditions: [[SimpleNamespace(name=name)] for name in "ab"]
    )
    with pytest.raises(OutOfMemoryError, match=r"lower intervene\.workers, now 2"):
        list(batches.run_conditions(object.__new__(Runner), [], workers=2))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
@pytest.mark.parametrize("mib", [24, 32])
def test_a_limit_below_the_imports_is_one_sentence(mib: int) -> None:
    """The numbers lie below what Python needs for the command line, on any machine."""
    import resource

    size = mib << 20
    done = subprocess.run(
        [sys.executable, "-m", "mechprobe", "doctor"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mechprobe: memory ran out (")
    assert done.stderr.count("\n") == 1


def test_numpy_says_the_size() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty((1 << 45,))
    assert is_out_of_memory(caught.value)


_NUMPY = """
import resource
from pathlib import Path
from mechprobe.cli.limited_memory import check_room_for_openblas

line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, ((int(line.split()[1]) << 10) + ({room} << 20),) * 2)
check_room_for_openblas()
import numpy
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
@pytest.mark.parametrize(("room", "enough"), [(100, False), (4096, True)])
def test_openblas_is_not_loaded_where_it_would_try_for_ever(room: int, enough: bool) -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", _NUMPY.format(room=room)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is enough
    assert enough or done.stderr.splitlines()[-1].endswith(
        "memory ran out: numpy needs 144 MiB of address space to load. Raise the limit (`ulimit -v`), or set "
        "OPENBLAS_NUM_THREADS=1, and run the same command again."
    )


_LIMITED = """
import os, sys, time
from mechprobe.cli import ending

{setup}
sys.exit(ending.main())
"""


def limited(setup: str, *arguments: str) -> subprocess.Popen[str]:
    """A command under a limit of the address space that suffices."""
    import resource

    size = 1 << 33
    return subprocess.Popen(
        [sys.executable, "-c", _LIMITED.format(setup=setup), *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
@pytest.mark.parametrize(
    ("end", "how"), [("os.abort()", "SIGABRT"), ("os._exit(1)", "exit code 1"), ("os.kill(os.getpid(), 11)", "SIGSEGV")]
)
def test_a_library_that_ends_the_command_is_one_sentence(end: str, how: str) -> None:
    command = limited(f"ending._run = lambda argv: {end}", "doctor")
    _, said = command.communicate(timeout=60)
    assert command.returncode == 2
    assert said == (
        f"mechprobe: a library ended the command ({how}), as some do where memory runs out. Raise the limit of the address "
        "space (`ulimit -v`), or lower the batch size, and run the same command again.\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
@pytest.mark.parametrize(
    "error", ["SystemError('error return without exception set')", "RuntimeError('unknown parameter type')"]
)
def test_an_error_of_c_code_under_a_limit_is_a_lack_of_memory(error: str) -> None:
    setup = f"def run(argv):\n    raise {error}\nending._run = run"
    command = limited(setup, "doctor")
    _, said = command.communicate(timeout=60)
    assert command.returncode == 2
    assert said.startswith("mechprobe: memory ran out (")
    assert said.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
@pytest.mark.parametrize(
    ("arguments", "code", "said"), [(["--help"], 0, ""), (["unknown"], 2, "mechprobe: No such command 'unknown'")]
)
def test_a_limited_command_ends_as_any(arguments: list[str], code: int, said: str) -> None:
    command = limited("", *arguments)
    out, error = command.communicate(timeout=60)
    assert command.returncode == code
    assert error.startswith(said)
    assert bool(out) is (code == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, 130), (signal.SIGHUP, -1), (signal.SIGUSR1, -10)]
)
def test_signals_reach_a_limited_command(sent: signal.Signals, code: int) -> None:
    wait = "print('ready', flush=True) or time.sleep(60)"
    command = limited(f"ending._run = lambda argv: {wait}", "doctor")
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    command.send_signal(sent)
    command.communicate(timeout=30)
    assert command.returncode == code


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
def test_a_limited_command_ends_with_the_process_that_watches_it() -> None:
    wait = "print(os.getpid(), flush=True) or time.sleep(60)"
    command = limited(f"ending._run = lambda argv: {wait}", "doctor")
    assert command.stdout is not None
    place = Path("/proc") / command.stdout.readline().strip()
    assert place.is_dir()
    command.kill()
    command.communicate(timeout=30)
    for _ in range(100):
        if not place.is_dir():
            break
        time.sleep(0.1)
    assert not place.is_dir()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
def test_a_program_from_stdin_runs_under_a_limit() -> None:
    import resource

    size = 1 << 33
    done = subprocess.run(
        [sys.executable, "-", "--help"], input=_LIMITED.format(setup=""), capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
def test_what_runs_at_the_end_without_memory_is_silent() -> None:
    setup = (
        "def late():\n    raise MemoryError\nimport atexit\nending._run = lambda argv: atexit.register(late) and late()"
    )
    command = limited(setup, "doctor")
    _, said = command.communicate(timeout=60)
    assert command.returncode == 2
    assert said.startswith("mechprobe: memory ran out (MemoryError)")
    assert said.count("\n") == 1
