"""Curves for the tests of dynamics."""

from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.dynamics.published import read_published
from mechprobe.emergence.arms import all_arms, step_of
from mechprobe.records import Outcome, write_jsonl
from mechprobe.stage_folder import Stage
from mechprobe.statistics import Interval
from mechprobe.sweep.registry import file_name
from mechprobe.sweep.result import CELL_FILE, RESPONSES_FILE, BenchmarkInfo, CellResult, SweepResults

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


def swept(
    run: Path,
    values: dict[str, dict[str, list]],
    *,
    steps: dict[str, int | None] | None = None,
    finish: str = "stop",
    cut: dict[str, set[int]] | None = None,
    **info: Any,
) -> Path:
    """A finished sweep under ``run``: benchmark → model → the numbers of every response, item by item, or only a value with bounds.

    ``cut`` names the items of a model whose responses were cut; ``info`` overrides fields of every `BenchmarkInfo`. Without ``finish``
    no responses are kept.
    """
    work, models = run / "benchmarks", list(dict.fromkeys(model for row in values.values() for model in row))
    cells: dict[str, dict[str, CellResult]] = {}
    for name, row in values.items():
        about = {"group": "own", "metric": "accuracy", "scorer": "rule", "scoring": "exact", "higher_is_better": True}
        about |= {"standin": False, "source": "hf", "decoding": {}, "items": "", "n_items": 9, "n_draws": 1, **info}
        told = BenchmarkInfo(name=name, title=name, **about)
        for model, found in row.items():
            rows = {} if isinstance(found, Interval) else {f"q{i}": list(each) for i, each in enumerate(found)}
            means = list(CellResult(benchmark=told, model=model, value=NO_VALUE, values=rows).per_item.values())
            value = found if isinstance(found, Interval) else Interval(float(np.mean(means)), 0.0, 1.0, len(means))
            cell = CellResult(benchmark=told, model=model, value=value, values=rows)
            cells.setdefault(name, {})[model] = cell
            _write_cell(work / file_name(name) / model, cell, finish, (cut or {}).get(model, set()))
    base = models[0]
    results = SweepResults(
        base=base,
        arms={arm.name: list(arm.checkpoints) for arm in all_arms(models, base, steps or {})},
        order=list(values),
        steps={model: 0 if model == base else step_of(model, steps or {}) for model in models},
        benchmarks={name: row[next(iter(row))].benchmark for name, row in cells.items()},
        cells={n: {m: cell.model_copy(update={"values": {}}) for m, cell in row.items()} for n, row in cells.items()},
        comparisons={},
        files={name: {model: f"{file_name(name)}/{model}/{CELL_FILE}" for model in row} for name, row in cells.items()},
    )
    made_from = {f"{name} {model}": work / file_name(name) / model for name, row in cells.items() for model in row}
    with Stage.open(run / "sweep", name="sweep", config={}, inputs=made_from) as stage:
        results.save(stage.folder / "sweep.json")
        stage.finish(outputs=["sweep.json"])
    return run / "sweep"


NO_VALUE = Interval(0.0, 0.0, 0.0, 0)


def _write_cell(folder: Path, cell: CellResult, finish: str, cut: set[int]) -> None:
    with Stage.open(folder, name="sweep-cell", config={"model": cell.model}, inputs={}) as stage:
        cell.save(folder / CELL_FILE)
        kept = [CELL_FILE]
        if finish and cell.values:
            kept.append(RESPONSES_FILE)
            write_jsonl(folder / RESPONSES_FILE, (
                Outcome(item, cell.benchmark.name, cell.model, "right" if value else "wrong", "", 40 if place in cut else 10,
                        draw=draw, finish="length" if place in cut else finish)
                for place, (item, row) in enumerate(cell.values.items()) for draw, value in enumerate(row)
            ))  # fmt: skip
        stage.finish(outputs=kept)
