"""The paper's figures from a run folder: every plotted number again from the files, by other means."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

import mechprobe as mp
from experiments.paper_a import figures
from mechprobe.features.table.feature_table import feature_table
from mechprobe.files import read_json
from mechprobe.selection.gained import Gained
from mechprobe.selection.result import choose
from mechprobe.selection.scores import Scores
from mechprobe.selection.summary import selection_summary
from mechprobe.stage_folder import Stage
from tests.small_dictionaries import make_crosscoder, make_store

ROOT = Path(figures.__file__).parents[2]


def test_overlap_by_hand() -> None:
    values = np.array([[1.0, 0.5, 0.3, 0.1, 9.0], [0.1, 1.0, 0.9, 0.21, 9.0]])
    alive = np.array([True, True, True, True, False])  # the dead one has the largest value and counts for nothing
    found = figures.task_overlap(np.where(alive, values, 0), ("a", "b"), alive)
    assert found.sizes == (3, 3)  # {0, 1, 2} and {1, 2, 3}
    assert found.contained == [[1.0, 2 / 3], [2 / 3, 1.0]]
    assert found.jaccard == [[1.0, 0.5], [0.5, 1.0]]
    assert found.chance == [[0.75, 0.75], [0.75, 0.75]]
    assert found.in_all == 2


def test_a_task_that_nothing_carries_shares_nothing() -> None:
    found = figures.task_overlap(np.array([[1.0, 0.5], [-1.0, -2.0]]), ("a", "b"), np.ones(2, bool))
    assert found.sizes == (2, 0)
    assert np.isnan(found.contained[0][1])
    assert found.in_all == 0


def test_a_histogram_counts_what_is_finite() -> None:
    found = figures.histogram(np.array([0.0, 0.5, 1.0, np.nan]))
    assert found["n"] == sum(found["counts"]) == 3
    assert found["quantiles"]["0.50"] == 0.5
    assert figures.histogram(np.array([np.nan]))["quantiles"] == {}


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, figures.__file__, "--run", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2
    assert "does not exist; run the stage that writes it first" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("n_models", [1, 3])
def test_panels_show_all_bars(n_models: int) -> None:
    found = {f"m{k}": figures.histogram(np.full(1000, 0.5)) for k in range(n_models)}
    figure = figures.shares_panels(found, equal=0.5, xlabel="NRN", labels=("base", "tuned"))
    assert len(figure.axes) == n_models
    assert figure.axes[0].get_ylim()[1] > 1000


def small_run(folder: Path) -> Path:
    """A run folder with the two stages that the figures read, from random weights and activations."""
    table = feature_table(
        make_crosscoder(), make_store(torch.randn(200, 3, 8, generator=torch.Generator().manual_seed(0)))
    )
    with Stage.open(folder / "features", name="features", config={}) as stage:
        stage.finish(outputs=table.save(stage.folder))
    values, ones = np.random.default_rng(0).random((3, len(table))), np.ones(len(table))
    scores = Scores(("a", "b", "c"), (4, 5, 6), values, values**2, ones, ones, ones, ones, ones, values > 0)
    chosen = choose(scores, "top:2", site="resid_post.1", crosscoder="x", n_controls=1)
    gained = Gained({}, dict(zip(scores.tasks, scores.n_gained, strict=True)), {})
    summary = selection_summary(chosen, mp.SelectConfig(), gained=gained, attribution={})
    with Stage.open(folder / "selection", name="select", config={}) as stage:
        scores.save(stage.folder / "scores.safetensors")
        summary.save(stage.folder / "selection.json")
        stage.finish(outputs=["scores.safetensors", "selection.json"])
    return folder


def test_every_plotted_number_is_in_the_file(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    lines = figures.draw(run, None, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"nrn.png", "mas.png", "tasks.png", "figures.json"}
    numbers = read_json(tmp_path / "out" / "figures.json")
    frame = pd.read_parquet(run / "features" / "table.parquet")
    alive = frame[~frame["dead"]]
    for share, names in (("nrn", ("sft", "rl")), ("mas", ("base", "sft", "rl"))):
        assert set(numbers[share]) == set(names)
        for name in names:
            found = numbers[share][name]
            column = alive[f"{share}_{name}"].dropna()
            for count, low, high in zip(found["counts"], found["edges"][:-1], found["edges"][1:], strict=True):
                assert count == int(((column >= low) & (column < high)).sum())
            assert found["quantiles"]["0.50"] == pytest.approx(column.median())
    values = load_file(run / "selection" / "scores.safetensors")["score"]
    sets = [{k for k in range(12) if row[k] > 0.2 * row.max() and k in alive["feature"].values} for row in values]
    found = numbers["tasks"]["score"]
    assert found["sizes"] == [len(items) for items in sets]
    assert found["contained"][0][2] == len(sets[0] & sets[2]) / min(len(sets[0]), len(sets[2]))
    assert found["in_all"] == len(sets[0] & sets[1] & sets[2])
    assert any(f"{found['in_all']} features in all" in line for line in lines)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    figures.draw(run, None, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
