"""Several processes divide work: all results in order in every process, one set of files, one sentence when one fails or dies."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mechprobe.errors import ConfigError
from mechprobe.launcher import ranks_of_command
from mechprobe.ranks import Ranks, in_turns, is_first, sharing

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from mechprobe.errors import EndedElsewhereError, InputError, MechprobeError
from mechprobe.launcher import ranks_of_command
from mechprobe.ranks import in_turns
from mechprobe.stage_folder import Stage

def square(number):
    if (number, mode) == (victim, "kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if (number, mode) == (victim, "fail"):
        raise InputError(f"item {number} cannot be used.")
    within = list(in_turns(lambda other: other + number, range(3)))  # inside a piece of work nothing is divided
    return {"square": torch.tensor([number**2]), "done by": os.environ.get("RANK", "0"), "within": within}

mode, victim, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
try:
    with ranks_of_command("evaluate") as ranks:
        with Stage.open(out, name="squares", config={"n": 7}) as stage:
            if not stage.done:
                kept = sorted(path.name for path in stage.folder.glob("part-*"))
                assert len(set(map(tuple, ranks.gather(kept)))) == 1, "all see what an interrupted run kept"
                for number, found in enumerate(in_turns(square, range(7))):
                    assert found["square"].item() == number**2
                    assert found["done by"] == str(number % ranks.count)
                    assert found["within"] == [number, number + 1, number + 2]
                    (stage.folder / f"part-{number}").write_text(str(found["square"].item()))
                (stage.folder / "all.txt").write_text("".join(path.read_text() for path in sorted(stage.folder.glob("part-*"))))
                stage.finish(outputs=["all.txt"])
        assert (out / "manifest.json").is_file(), "every process leaves the stage after it is finished"
except EndedElsewhereError:
    sys.exit(2)
except MechprobeError as error:
    sys.stderr.write(f"mechprobe: {error}\\n")
    sys.exit(2)
"""


def run(folder: Path, mode: str, victim: int = -1, n: int = 2, *, torchrun: bool = True) -> tuple[int, list[str]]:
    """Exit code and sentences of the script in ``n`` processes, which torchrun starts, or quicker this function."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = [str(script), mode, str(victim), str(folder / "out")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    if torchrun:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-addr", "127.0.0.1"]
        commands, own = [[sys.executable, *launcher, "--master-port", port, *given]], [{}]
    else:
        together = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        commands, own = [[sys.executable, *given]] * n, [{**together, "RANK": str(index)} for index in range(n)]
    started = [
        subprocess.Popen(command, env=env | added, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command, added in zip(commands, own, strict=True)
    ]
    lines = [line for process in started for line in process.communicate(timeout=300)[1].splitlines()]
    return max(abs(process.returncode) for process in started), [
        line for line in lines if line.startswith("mechprobe: ")
    ]


def test_two_processes_give_the_files_of_one_and_one_sentence_when_one_fails(tmp_path: Path) -> None:
    code, said = run(tmp_path, "fail", victim=3, torchrun=False)
    assert code != 0
    assert said == ["mechprobe: item 3 cannot be used."]
    assert sorted(path.name for path in (tmp_path / "out").glob("part-*")) == ["part-0", "part-1"]
    assert run(tmp_path, "whole", torchrun=False) == (0, [])
    assert (tmp_path / "out" / "all.txt").read_text() == "0149162536"


def killed_and_resumed(folder: Path, victim: int, n_after: int) -> None:
    code, said = run(folder, "kill", victim)
    assert code != 0
    assert len(said) <= 1, "the launcher alone reports the death of the first process"
    assert all("Another process" in line for line in said)
    assert victim % 2 == 0 or said
    assert not (folder / "out" / "manifest.json").exists()
    assert run(folder, "whole", n=n_after) == (0, [])
    assert (folder / "out" / "all.txt").read_text() == "0149162536"


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
