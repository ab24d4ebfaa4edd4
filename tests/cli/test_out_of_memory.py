"""Every command when memory runs out once: the same bytes, or one sentence after which the same command works."""

import errno
import hashlib
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mechprobe.cache.harvest import forward_batches
from mechprobe.cache.store import disk
from mechprobe.cli import main
from sae_training import checkpoint
from tests.cli.memory_commands import Small, commands, make
from tests.cli.memory_faults import ERRORS, Fault, Make, in_calls, in_forward_passes

Place = Callable[[Make, int], AbstractContextManager[Fault]]
FAST = ("evaluate", "localize")
SLOW = (
    "cache", "train-sae", "weights",
    "train-sae stream", "train-sae ring", "features", "features seeds", "baselines", "select ig", "select score", "select relie", "intervene", "drift",
    "sweep", "probe", "dynamics", "logprobs", "emergence", "posttrain sft", "posttrain grpo", "report", "import", "export", "doctor", "plan",
)  # fmt: skip
WITHOUT_MODELS = ("train-sae", "weights", "dynamics", "report", "import", "export", "doctor", "plan")
N_PLACES = 2
"""Calls of each command that fail in the slow tests."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A run that has only its settings and its first stage."""
    return make(tmp_path_factory.mktemp("small"), "localize")


@pytest.fixture(scope="module")
def finished(begun: Small) -> Small:
    assert main(["run", "--run", str(begun.run)]) == 0
    return begun


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file that a manifest vouches for."""
    return {
        str(manifest.parent / name): hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest()
        for manifest in sorted(folder.rglob("manifest.json"))
        for name in json.loads(manifest.read_text())["outputs"]
    }


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def check(small: Small, name: str, out: Path, place: Place, capsys: pytest.CaptureFixture[str], n: int = 1) -> None:
    """Let a command fail at its first call of a kind and at ``n`` drawn ones, once with each kind of error in turn."""
    command, written = commands(small, out)[name], small.run / "report" if name == "report" else emptied(out)
    assert main(command) == 0  # the first time also calls what is called once in a process
    emptied(out)
    with place(MemoryError, 0) as counted:
        assert main(command) == 0
    expected, draw = digests(written), random.Random(name)
    assert counted.n
    for at in {1, *(draw.randint(1, counted.n) for _ in range(n))}:
        kind = draw.choice(list(ERRORS))
        emptied(out)
        capsys.readouterr()
        with place(ERRORS[kind], at) as fault:
            code = main(command)
        said = capsys.readouterr().err
        where = f"{kind} at {at} of {counted.n}, {fault.where}: {said}"
        lines = [line for line in said.splitlines() if line.startswith("mechprobe: ")]
        assert "Traceback" not in said, where
        assert not list(out.rglob("*.partial")), where
        if code == 0:
            assert sum("memory ran out, so" in line for line in said.splitlines()) <= 1, where
        else:
            assert (code, len(lines)) == (2, 1), where
            again, kept = main(command), name == "export" and digests(written) == expected
            assert again == 0 or kept, where  # an export whose files are finished refuses to write them again
        assert digests(written) == expected, where


@pytest.mark.parametrize("name", FAST)
def test_a_forward_pass_fails(begun: Small, name: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(begun, name, out, in_forward_passes, capsys)


def test_a_call_fails(begun: Small, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(begun, "localize", out, in_calls, capsys)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """A command that waits for a thread that has ended fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the command hangs"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def full_at(real: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The same function, which finds the disk full at a call."""
    calls = count(1)

    def filling(*values: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*values, **options)

    return filling


@pytest.mark.usefixtures("no_waiting")
def test_a_full_disk(
    begun: Small, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = ["--run", str(begun.run), "--out", str(emptied(out) / "o"), "--cache", str(out / "store")]
    cache = ["cache", *to[:2], "--out", str(out / "store")]
    train = ["train-sae", *to, "--set", "train_sae.training.checkpoint_every=1"]
    start_storing = forward_batches.start_storing
    store_rows = full_at(lambda *values: start_storing(*values)(), 3)  # in the thread that stores rows
    for command, module, name, filling in (
        (cache, forward_batches, "start_storing", lambda *values: partial(store_rows, *values)),
        (cache, disk, "_require_room", full_at(disk._require_room, 3)),  # pyright: ignore[reportPrivateUsage]
        (train, checkpoint, "write_tensors", full_at(checkpoint.write_tensors, 3)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, filling)
            capsys.readouterr()
            code = main(command)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mechprobe: ")]
        assert (code, len(said)) == (2, 1), (name, said)
        assert "disk is full" in said[0]
        assert not list(out.rglob("*.partial"))
        if name != "start_storing":
            assert main(command) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SLOW if name not in WITHOUT_MODELS])
def test_a_forward_pass_of_any_command_fails(
    finished: Small, name: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(finished, name, out, in_forward_passes, capsys, N_PLACES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_a_call_of_any_command_fails(finished: Small, name: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(finished, name, out, in_calls, capsys, N_PLACES)
