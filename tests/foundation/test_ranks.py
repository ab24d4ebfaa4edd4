"""Several processes divide work: all results in order in every process, one set of files, one sentence when one fails or dies."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from mechprobe.errors import ConfigError
from mechprobe.launcher import ranks_of_command
from mechprobe.ranks import Ranks, in_turns, is_first, sharing

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from mechprobe.errors import EndedElsewhereError, InputError, MechprobeError
from mechprobe.launcher import ranks_of_command
from mechprobe.ranks import in_turns, once, sharing
from mechprobe.stage_folder import Stage

def square(number):
    if (number, mode) == (victim, "kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if (number, mode) == (victim, "fail"):
        raise InputError(f"item {number} cannot be used.")
    within = list(in_turns(lambda other: other + number, range(3)))  # inside a piece of work nothing is divided
    return {"square": torch.tensor([number**2]), "done by": os.environ.get("RANK", "0"), "within": within}

def work(out, one_folder=False):
    with Stage.open(out, name="squares", config={"n": 7}, one_folder=one_folder) as stage:
        if not stage.done:
            kept = sorted(path.name for path in stage.folder.glob("part-*"))
            assert len(set(map(tuple, sharing().gather(kept)))) == 1, "all see what an interrupted run kept"
            for number, found in enumerate(in_turns(square, range(7))):
                assert found["square"].item() == number**2
                assert found["done by"] == str(number % sharing().count)
                assert found["within"] == [number, number + 1, number + 2]
                (stage.folder / f"part-{number}").write_text(str(found["square"].item()))
            assert once(lambda: (sharing().count, os.environ.get("RANK", "0"))) == (1, "0"), "the first process does it alone"
            (stage.folder / "all.txt").write_text("".join(path.read_text() for path in sorted(stage.folder.glob("part-*"))))
            if sharing().is_first or not one_folder:
                stage.finish(outputs=["all.txt"])
    assert (out / "manifest.json").is_file(), "every process leaves the stage after it is finished"

def run(out):
    rank = os.environ.get("RANK", "0")
    try:
        with ranks_of_command("evaluate", given=rank if mode == "differ" else ""):
            if mode == "break" and rank == "1":
                raise OSError("a disk is gone")
            work(out.with_name(f"apart-{rank}") if mode == "apart" else out)
    except EndedElsewhereError:
        return 2
    except MechprobeError as error:
        sys.stderr.write(f"mechprobe: {error}\\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{error}\\n")
        return 1
    return 0

codes, victim, out = [], int(sys.argv[2]), Path(sys.argv[3])
for turn, mode in enumerate(sys.argv[1].split(",")):
    if turn:
        os.environ["MASTER_PORT"] = sys.argv[3 + turn]
    codes.append(run(out))
    sys.stderr.write(f"{mode}: {codes[-1]}\\n")
sys.exit(max(codes))
"""


def free_ports(n: int) -> list[str]:
    probes = [socket.socket() for _ in range(n)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def run(folder: Path, modes: str, victim: int = -1, n: int = 2, *, torchrun: bool = True) -> tuple[int, list[str]]:
    """Exit code and lines of the script in ``n`` processes, which torchrun starts, or quicker this function."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    first, *further = free_ports(modes.count(",") + 1)
    given = [str(script), modes, str(victim), str(folder / "out"), *further]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    if torchrun:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-addr", "127.0.0.1"]
        commands, own = [[sys.executable, *launcher, "--master-port", first, *given]], [{}]
    else:
        together = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": first}
        commands, own = [[sys.executable, *given]] * n, [{**together, "RANK": str(index)} for index in range(n)]
    started = [
        subprocess.Popen(command, env=env | added, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command, added in zip(commands, own, strict=True)
    ]
    lines = [line for process in started for line in process.communicate(timeout=300)[1].splitlines()]
    return max(abs(process.returncode) for process in started), lines


def sentences(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("mechprobe: ")]


def test_two_processes_give_the_files_of_one_and_one_sentence_when_one_fails(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "differ,apart,break,fail,whole,whole", victim=3, torchrun=False)
    assert code == 2, lines
    said = sentences(lines)
    assert said[0].startswith("mechprobe: Process 1 was started with other arguments than process 0")
    assert "Process 1 does not see what process 0 writes into" in said[1]
    assert said[2:] == ["mechprobe: item 3 cannot be used."]
    assert lines.count("a disk is gone") == 1
    for mode, both in {"differ": [2, 2], "apart": [2, 2], "break": [1, 2], "fail": [2, 2], "whole": [0] * 4}.items():
        assert sorted(int(line[-1]) for line in lines if line.startswith(f"{mode}: ")) == both
    assert (tmp_path / "out" / "all.txt").read_text() == "0149162536"


def killed_and_resumed(folder: Path, victim: int, n_after: int) -> None:
    code, lines = run(folder, "kill", victim)
    assert code != 0
    (said,) = sentences(lines)
    assert "Another process" in said
    assert not (folder / "out" / "manifest.json").exists()
    code, lines = run(folder, "whole", n=n_after)
    assert (code, sentences(lines)) == (0, [])
    assert (folder / "out" / "all.txt").read_text() == "0149162536"


class Second(Ranks):
    """The second of two processes, without the first."""

    def gather(self, value: T) -> list[T]:
        return [value, value]


def test_a_copy_of_the_folder_leaves_out_what_the_first_process_may_remove(tmp_path: Path) -> None:
    (tmp_path / "part-0").touch()
    (tmp_path / ".mark.partial").touch()
    with Second(1, 2).own_copy(tmp_path) as own:
        assert [path.name for path in own.iterdir()] == ["part-0"]


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(10))
def test_a_process_killed_at_a_random_item_ends_all_and_fewer_resume(draw: int, tmp_path: Path) -> None:
    drawn = random.Random(draw)
    killed_and_resumed(tmp_path, drawn.randrange(7), drawn.choice((1, 2)))


def test_one_process_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks_of_command("evaluate") as ranks:
        assert (ranks.count, sharing().count, is_first()) == (1, 1, True)
        assert list(in_turns(lambda number: torch.tensor(number), range(3))) == [0, 1, 2]
        assert ranks.gather("x") == ["x"]
    assert [number for number in range(5) if Ranks(1, 2).owns(number)] == [1, 3]


def test_commands_of_one_process_refuse_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="`mechprobe report` runs in one process"), ranks_of_command("report"):
        pass
