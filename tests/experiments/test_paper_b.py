"""The analysis of arXiv 2512.24063 as one command on a few checkpoints of the lab."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mechprobe as mp
from mechprobe.files import read_json

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "cache.max_prompts=40", "cache.responses=['base@1.0','rl@0.0']", "cache.max_new_tokens=16", "evaluate.n_per_task=8",
    "tasks.max_new_tokens=20", "probe.linear.items=20", "probe.linear.folds=2", "probe.linear.sites=['resid_post.2']",
    "probe.draws=100", "drift.draws=100", "drift.lens_texts=4", "drift.positions=32",
]  # fmt: skip


def test_the_configuration_names_every_checkpoint_of_the_lab() -> None:
    config = mp.RunConfig.build(ROOT / "experiments" / "paper_b" / "lab.toml")
    lab = ROOT / "artifacts" / "lab" / "shared-marker"
    expected = {f"{path.parent.name}@{path.name}" for path in lab.glob("checkpoints/*/step_*")}
    assert set(config.models) == expected | {"base", "sft", "sft_instyle", "rl"}
    assert all(Path(path).is_dir() for path in config.models.values())
    manifest = read_json(lab / "manifest.json")
    assert config.probe.final_steps["rl"] == manifest["config"]["recipe"]["rl"]["steps"]
    assert config.probe.trained == ("calculation",)


@pytest.mark.slow
def test_one_command_writes_numbers_and_figures(tmp_path: Path) -> None:
    config = tmp_path / "few.toml"
    lines = (ROOT / "experiments" / "paper_b" / "lab.toml").read_text().splitlines()
    kept = [line for line in lines if "step_" not in line or "rl@step_000012" in line]
    config.write_text("\n".join(kept).replace("../../", f"{ROOT}/"))
    command = [
        sys.executable,
        "experiments/paper_b/run.py",
        "--config",
        config,
        "--out",
        tmp_path / "out",
        "--per-level",
        "4",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*map(str, command), "--set", *SMALL], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "out" / "paper_b.json")
    assert set(found["divergence"]["own"]["all"]) == {"rl"}
    assert {"first", "second", "cosine"} <= found["weights"]["pairs"][0].keys()
    assert found["levels"]["n_items"] == 5 * 4 * 4
    assert "below base" in done.stdout
    assert all(
        (tmp_path / "out" / f"{name}.png").is_file()
        for name in ("profiles", "drift", "divergence", "weights", "correlation")
    )
