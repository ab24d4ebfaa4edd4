"""A run killed twenty times and resumed ends in the same bytes as an uninterrupted one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("batchtopk", "jumprelu", "l1")

# A process that imports once and forks: every fork trains into a folder and may be killed by SIGKILL at a given batch.
SCRIPT = """
import os, random, signal, sys
from pathlib import Path
import torch
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig, train

torch.set_num_threads(1)
DIRECTIONS = torch.randn(20, 2, 8, generator=torch.Generator().manual_seed(5))
N_STEPS, BATCH = 200, 64


class Stream:
    def __init__(self, kill_after):
        self.number, self.drawn, self.kill_after = 0, 0, kill_after

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.number)
            active = torch.rand(BATCH, 20, generator=generator) * (torch.rand(BATCH, 20, generator=generator) < 0.1)
            if self.drawn == self.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            self.number += 1
            self.drawn += 1
            yield torch.einsum("bg,gmd->bmd", active, DIRECTIONS)

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


def train_into(folder, variant, kill_after, n_steps=N_STEPS):
    config = CrosscoderConfig(n_models=2, d_model=8, d_sae=32, k=3, variant=variant)
    training = TrainConfig(
        n_tokens=n_steps * BATCH, batch_size=BATCH, lr=1e-2, checkpoint_every=5, log_every=2, dead_after_tokens=300
    )
    train(Crosscoder(config), Stream(kill_after), training, out=folder)


def run(folder, variant, kill_after):
    pid = os.fork()
    if pid == 0:
        train_into(folder, variant, kill_after)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


for variant in sys.argv[2:]:
    root = Path(sys.argv[1]) / variant
    train_into(None, variant, -1, n_steps=1)  # makes the imports that torch delays until the first step
    assert run(root / "whole", variant, -1) == 0
    draw = random.Random(variant)
    for number in range(20):
        assert run(root / "broken", variant, draw.randint(5, 13)) == signal.SIGKILL
    assert run(root / "broken", variant, -1) == 0
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two runs of each variant, made in one process because imports take longer than the runs."""
    folder = tmp_path_factory.mktemp("resume")
    command = [sys.executable, "-c", SCRIPT, str(folder), *VARIANTS]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_run_ends_in_the_same_bytes(trained: Path, variant: str) -> None:
    whole, broken = files_of(trained / variant / "whole"), files_of(trained / variant / "broken")
    assert "weights.safetensors" in whole
    assert "checkpoints/step_000200/state.safetensors" in whole
    assert whole.keys() == broken.keys()
    for name, content in whole.items():
        assert content == broken[name], f"{name} differs"
