"""The paper's figures from a run folder: every plotted number again from the files, by other means."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.paper_a import figures

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
    import os

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
