"""Sets with features that never fire on the gained samples: counted by hand, and said in a sentence."""

import numpy as np
import pytest

from mechprobe.selection.never_active import silence
from mechprobe.selection.rankings.scores import Scores

FIRES = np.array([[True, False, False, True], [True, True, False, False]])


def scores(fires: np.ndarray | None = FIRES) -> Scores:
    ones, values = np.ones(4), np.ones((2, 4))
    return Scores(("sum", "pair"), (3, 2), values, values, ones, ones, ones, ones, ones, fires=fires)


@pytest.mark.parametrize(
    ("features", "per_task", "all_tasks", "words"),
    [
        ((0,), (0, 0), 0, ""),
        ((), (0, 0), 0, ""),
        ((0, 1), (1, 0), 0, "Of 2 features, silent on every token read of the gained samples: sum 1, pair 0 (0 on all tasks);"),
        ((2, 3, 0), (1, 2), 1, "sum 1, pair 2 (1 on all tasks); ablating, scaling or transplanting them does nothing there"),
        ((2, 3), (1, 2), 1, "sum 1, pair 2 (1 on all tasks; on pair the whole set);"),
        ((2,), (1, 1), 1, "No feature of the set fires on any token read of the gained samples: ablating"),
        ((1, 3), (1, 1), 0, "(0 on all tasks)"),
    ],
)  # fmt: skip
def test_silent_features_by_hand(
    features: tuple[int, ...], per_task: tuple[int, int], all_tasks: int, words: str
) -> None:
    found = silence(features, scores())
    assert (found["n_features"], found["all_tasks"]) == (len(features), all_tasks)
    assert found["per_task"] == {"sum": per_task[0], "pair": per_task[1]}
    assert words in found["sentence"]
    assert bool(found["sentence"]) == bool(words)


def test_scores_of_an_older_version_say_nothing() -> None:
    assert silence((0, 2), scores(None)) == {}
