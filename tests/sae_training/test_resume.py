"""A run killed at any step and resumed ends in the same bytes as an uninterrupted one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What the child process runs: a stream with a saved position, training, and a kill after a given number of batches.
CHILD = """
import os, signal, sys
import torch
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig, train

torch.set_num_threads(1)
out, kill_after, variant, positioned = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "positioned"
DIRECTIONS = torch.randn(20, 2, 8, generator=torch.Generator().manual_seed(5))


class Stream:
    def __init__(self):
        self.number, self.drawn = 0, 0

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.number)
            active = torch.rand(64, 20, generator=generator) * (torch.rand(64, 20, generator=generator) < 0.1)
            self.number += 1
            self.drawn += 1
            yield torch.einsum("bg,gmd->bmd", active, DIRECTIONS)
            if self.drawn > kill_after:
                os.kill(os.getpid(), signal.SIGKILL)


class Positioned(Stream):
    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


config = CrosscoderConfig(n_models=2, d_model=8, d_sae=32, k=3, variant=variant)
training = TrainConfig(
    n_tokens=40 * 64, batch_size=64, lr=1e-2, checkpoint_every=4, log_every=3, dead_after_tokens=300, keep_checkpoints=2
)
train(Crosscoder(config), Positioned() if positioned else Stream(), training, out=out)
"""


def run_child(out: Path, kill_after: int, variant: str, stream: str) -> int:
    command = [sys.executable, "-c", CHILD, str(out), str(kill_after), variant, stream]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("variant", "stream"), [("batchtopk", "positioned"), ("l1", "plain")])
def test_killed_and_resumed_run_ends_in_the_same_bytes(tmp_path: Path, variant: str, stream: str) -> None:
    never = 10**9
    assert run_child(tmp_path / "whole", never, variant, stream) == 0
    draw = random.Random(variant)
    killed = 0
    for _ in range(3):
        kill_after = draw.randint(5, 30)
        killed += run_child(tmp_path / "broken", kill_after, variant, stream) == -signal.SIGKILL
    assert killed >= 2
    assert run_child(tmp_path / "broken", never, variant, stream) == 0

    whole, broken = files_of(tmp_path / "whole"), files_of(tmp_path / "broken")
    broken_position = {name for name in whole if name.endswith("stream.pt")}
    assert whole.keys() == broken.keys()
    for name in whole.keys() - broken_position:
        assert whole[name] == broken[name], f"{name} differs"
