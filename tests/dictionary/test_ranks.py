"""`mechprobe train-sae` in several processes: the losses of one, one sentence when a process dies, and a resume by others."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cli import main
from mechprobe.dictionary import stage
from mechprobe.models.family import ModelFamily
from mechprobe.ranks import Ranks
from sae_training import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"d_sae": 96, "k": 8, "batch_size": 100, "lr": 1e-3, "pool_rows": 1000}


class Command:
    """The processes of one command `mechprobe train-sae`."""

    def __init__(self, cache: Path, out: Path, n: int, way: str = "latents", *, steps: int = 200, **more: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            together = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        training = {"training.checkpoint_every": 20, "training.log_every": 10, "training.divide": way}
        chosen = {**SETTINGS, "n_tokens": 100 * steps, **training, **more}
        command = [
            sys.executable, "-m", "mechprobe", "train-sae", "--run", str(out.parent), "--cache", str(cache), "--out", str(out),
            *(part for key, value in chosen.items() for part in ("--set", f"train_sae.{key}={value}")),
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), **together}
        self.processes = [
            subprocess.Popen(
                command, env=env | {"RANK": str(rank)}, cwd=out.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for rank in range(n)
        ]  # fmt: skip

    def end(self) -> tuple[list[int], str, list[str]]:
        """Exit codes, what all printed, and all sentences of errors."""
        texts = [process.communicate(timeout=300) for process in self.processes]
        errors = [line for _, text in texts for line in text.splitlines() if line.startswith("mechprobe: ")]
        assert not any("Traceback" in text for _, text in texts), texts
        return [process.returncode for process in self.processes], "".join(out for out, _ in texts), errors


@pytest.fixture(scope="module")
def cache(llama_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = [f"Compute {index}+{index * 7 % 13}=?" for index in range(150)]
    config = CacheConfig(sites=("resid_post.1",), shard_rows=500, held_out_frac=0.1)
    folder = tmp_path_factory.mktemp("ranks") / "cache"
    return cache_activations(ModelFamily.load(llama_family), prompts, out=folder, config=config).folder


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by one process."""
    out = tmp_path_factory.mktemp("whole") / "crosscoder"
    codes, printed, errors = Command(cache, out, 1).end()
    assert codes == [0], (printed, errors)
    return out


def compare(out: Path, whole: Path) -> None:
    assert losses(out) == pytest.approx(losses(whole), rel=1e-5)
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (out, whole))
    assert ours["fve_all"] == pytest.approx(theirs["fve_all"], rel=1e-4)
    assert ours["l0"] == pytest.approx(theirs["l0"], rel=1e-3)
    assert {name: ours[name] for name in ("tokens", "steps")} == {"tokens": 20_000, "steps": 200}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["latents", "tokens"])
def test_two_processes_have_the_losses_of_one(cache: Path, whole: Path, tmp_path: Path, way: str) -> None:
    out = tmp_path / "crosscoder"
    codes, printed, errors = Command(cache, out, 2, way).end()
    assert (codes, errors) == ([0, 0], [])
    assert printed.count("Written to") == 1, "only the first process prints"
    compare(out, whole)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (out, whole)]
    assert manifests[0]["config"] == manifests[1]["config"], "the number of processes is no setting of the stage"
    assert Command(cache, out, 1, "tokens" if way == "latents" else "latents").end()[0] == [0], "the folder is finished"


def killed(command: Command, out: Path, drawn: random.Random) -> None:
    """Kill one process at a random time after the first checkpoint; the other ends with at most one sentence."""
    victim, wait = drawn.randrange(2), drawn.random() * 0.5
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob("step_*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(wait)
    command.processes[victim].send_signal(signal.SIGKILL)
    codes, _, errors = command.end()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 2
    assert len(errors) == (1 if victim == 1 else 0), "a launcher reports the death of the first process"
    assert all("Another process" in line and "\n" not in line for line in errors)


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(10))
def test_a_process_killed_at_a_random_step_ends_all_and_others_resume(
    cache: Path, whole: Path, tmp_path: Path, draw: int
) -> None:
    drawn = random.Random(draw)
    out = tmp_path / "crosscoder"
    killed(Command(cache, out, 2, drawn.choice(["latents", "tokens"])), out, drawn)
    assert not (out / "manifest.json").exists()
    assert Command(cache, out, drawn.choice([1, 2, 3]), drawn.choice(["latents", "tokens"])).end()[0].count(0) >= 1
    compare(out, whole)


def test_modes_that_run_the_models_are_refused_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = Ranks(0, 2)
    monkeypatch.setattr(stage, "sharing", lambda: ranks)
    assert main(["train-sae", "--mode", "stream", "--run", str(tmp_path / "run")]) == 2
    assert "mechprobe: Mode 'stream' runs the models in one process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_way_to_divide_is_no_setting_of_the_stage() -> None:
    settings = TrainConfig(n_tokens=10, divide="tokens")
    assert settings.divide == "tokens"
    assert settings.model_dump() == TrainConfig(n_tokens=10).model_dump()
