"""Curves for the tests of dynamics."""

from pathlib import Path

import numpy as np

from mechprobe.dynamics.published import read_published
from mechprobe.records import Outcome, write_jsonl
from mechprobe.stage_folder import Stage

PUBLISHED = Path(__file__).parents[2] / "experiments/paper_c/published"
QUICK = {"draws": 1000, "resamples": 0}


def published(model: str, benchmark: str) -> dict:
    """The arguments of `dip_and_recovery` for one published curve."""
    found = read_published(PUBLISHED / f"qwen3_{model.lower()}.csv")[benchmark]
    return {
        "steps": found["steps"],
        "scores": found["scores"],
        "base_score": found["base"],
        "n": found["n"],
        "responses": found["responses"],
    }


def item_curves(means: list[float], n: int, seed: int) -> np.ndarray:
    """Right and wrong ``[1 + checkpoint, item]`` of items with shared difficulty, base first; ``means`` scale each item's chance."""
    rng = np.random.default_rng(seed)
    chance = rng.uniform(0.2, 1.0, n)
    return np.stack([rng.random(n) < chance * mean for mean in means]).astype(float)


def evaluated(folder: Path, means: dict[str, float], *, n: int = 300, cut: dict[str, float] | None = None) -> Path:
    """A finished evaluate stage with the outcomes of these models on one task; ``cut`` is the share of cut responses of a model."""
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.3, 1.0, n)
    records = []
    for name, mean in means.items():
        for item in range(n):
            is_cut = rng.random() < (cut or {}).get(name, 0.0)
            right = not is_cut and rng.random() < chance[item] * mean
            outcome = "right" if right else "unparsed" if is_cut else "wrong"
            records.append(
                Outcome(
                    f"s{item}", "sums", name, outcome, "", 64 if is_cut else 20, finish="length" if is_cut else "stop"
                )
            )
    with Stage.open(folder, name="evaluate", config={}, inputs={}) as stage:
        write_jsonl(stage.folder / "outcomes.jsonl", records)
        stage.finish(outputs=["outcomes.jsonl"])
    return folder
