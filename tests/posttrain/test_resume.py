"""A killed training goes on from its last state to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mechprobe.emergence.arms import recorded_tokens
from mechprobe.files import sha256_file
from mechprobe.posttrain import GrpoConfig, LoraConfig, PosttrainResult, SftConfig, grpo, sft
from mechprobe.posttrain.watch import Watch
from tests.sums import digit_share

SFT = SftConfig(lr=3e-3, prompts_per_step=8, steps=8, checkpoints=(2, 5), state_every=3, micro_batch_size=4)
GRPO = GrpoConfig(
    lr=1e-3, prompts_per_step=4, n_generations=3, steps=8, checkpoints=(2, 5), state_every=3, max_new_tokens=8,
    score_cut=True, shuffle=True,
)  # fmt: skip
CASES = {
    "sft": SFT,
    "grpo": GRPO.replace(micro_batch_size=6),
    "lora": SFT.replace(lora=LoraConfig(rank=2, dropout=0.1)),
}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha256_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }


def train(base: Path, prompts: Path, out: Path, config: SftConfig | GrpoConfig) -> PosttrainResult:
    if isinstance(config, SftConfig):
        return sft(base, prompts, out, config, arm="arm")
    return grpo(base, prompts, out, config, arm="arm", scorer=digit_share)


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_training_resumes_to_the_same_bytes(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = CASES[name]
    whole = train(base, prompts, tmp_path / "whole", config)
    assert whole.checkpoints == (2, 5)
    assert [seen.step for seen in whole.tokens] == [2, 5, 8]
    assert [recorded_tokens(tmp_path / "whole/arm" / place) for place in ("step_000002", "step_000005", "")] == [
        seen.n for seen in whole.tokens
    ]

    real, steps = Watch.callback, []

    def interrupted(watch: Watch) -> object:
        on_step = watch.on_step

        def step() -> None:
            on_step()
            steps.append(1)
            if len(steps) == 7:
                raise KeyboardInterrupt

        watch.on_step = step
        return real(watch)

    monkeypatch.setattr(Watch, "callback", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(base, prompts, tmp_path / "again", config)
    assert not (tmp_path / "again/arm/manifest.json").exists()
    torn = tmp_path / "again/arm/state/checkpoint-7"
    torn.mkdir()  # a state that a kill left without its last file
    steps.clear()
    again = train(base, prompts, tmp_path / "again", config)
    assert len(steps) == 2, "steps 7 and 8 alone are trained again"
    assert hashes(tmp_path / "again/arm") == hashes(tmp_path / "whole/arm")
    assert again == whole
    assert not (tmp_path / "again/arm/state").exists()


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bytes(base: Path, prompts: Path, tmp_path: Path) -> None:
    """SIGKILL, through the command line."""
    command = [sys.executable, "-m", "mechprobe", "posttrain", "grpo", "--base", str(base), "--prompts", str(prompts)]
    command += [
        "--scorer",
        "python:tests.sums:digit_share",
        "--set",
        "steps=40",
        "--set",
        "state_every=4",
        "--set",
        "lr=1e-3",
    ]
    command += ["--set", "prompts_per_step=4", "--set", "max_new_tokens=8", "--set", "score_cut=true", "--json"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    arm = tmp_path / "killed" / "rl"
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not (arm / "state/checkpoint-12/whole").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (arm / "manifest.json").exists()
    subprocess.run([*command, "--out", str(tmp_path / "killed")], env=environment, check=True, capture_output=True)
    assert hashes(arm) == hashes(tmp_path / "whole/rl")
    assert json.loads((arm / "posttrain.json").read_text())["steps"] == 40
