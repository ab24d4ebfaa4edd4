"""What is kept and printed of a selection: counts of task-agnostic features agree, and both counts of gained samples."""

import numpy as np
import pytest

from mechprobe.cli.selection_lines import selection_lines
from mechprobe.errors import ConfigError
from mechprobe.records import Outcome, OutcomeName, Outcomes
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.gained import Gained, gained_samples
from mechprobe.selection.rankings.scores import Scores
from mechprobe.selection.result import selection_frame, selection_summary
from mechprobe.selection.stability import threshold_stability
from mechprobe.selection.stage import Selection, choose

#             feature: 0    1    2    3    4    5
JOINT = np.array([[1.0, 0.9, 0.8, 0.3, 0.1, 0.0], [1.0, 0.9, 0.1, 0.4, 0.1, 0.0]])
DEAD = 1
CONFIG = SelectConfig(rule="agnostic", n_controls=0, n_bootstrap=0, max_samples=3, min_gained=1)
GAINED = Gained({"sum": ["s0", "s1", "s2"], "pair": ["p0", "p1"]}, {"sum": 5, "pair": 2}, {})


def scores() -> Scores:
    """Feature 1 is never active, but has values: a read-out of one model alone can give it some."""
    ones = np.ones(6)
    density = ones.copy()
    density[DEAD] = 0.0
    return Scores(("sum", "pair"), (3, 2), JOINT, JOINT, density, ones, ones, np.zeros(4), np.zeros(4))


def chosen(rule: str) -> Selection:
    made = choose(scores(), rule, site="resid_post.1", crosscoder="x", n_controls=0)
    stability = threshold_stability(JOINT, ("sum", "pair"), made.features, live=made.scores.live, thresholds=(0.2,))
    object.__setattr__(made, "stability", {"thresholds": stability})
    return made


def test_dead_features_count_nowhere() -> None:
    data = selection_summary(chosen("agnostic"), CONFIG, gained=GAINED, attribution={})
    assert data["features"] == data["agnostic"] == [0, 3]
    assert data["n_agnostic"] == 2
    [at_threshold] = data["stability"]["thresholds"]["sizes"]
    for ranking in ("joint", "score"):
        assert data["agnostic_sizes"][ranking] == {"per_task": {"sum": 3, "pair": 2}, "all_tasks": 2}
    assert (at_threshold["all_tasks"], at_threshold["per_task"]) == (2, {"sum": 3, "pair": 2})


def test_a_dead_feature_that_is_named_is_not_task_agnostic() -> None:
    made = chosen("ids:1,0")
    assert made.n_agnostic == 1
    frame = selection_frame(made)
    assert frame["agnostic"].tolist() == [False, True]
    assert frame["above_0.2"].tolist() == [False, True]


def test_samples_gained_and_samples_read_are_both_told() -> None:
    data = selection_summary(chosen("agnostic"), CONFIG, gained=GAINED, attribution={})
    assert data["n_gained"] == {"sum": 3, "pair": 2}
    assert data["gained_sizes"] == {"sum": 5, "pair": 2}
    assert selection_lines(data)[0].endswith("(selection half): sum 5 (3 read), pair 2")
    before = {key: value for key, value in data.items() if key != "gained_sizes"}
    assert selection_lines(before)[0].endswith("(selection half): sum 3, pair 2")


MADE: tuple[tuple[str, OutcomeName], ...] = (("base", "wrong"), ("rl", "right"))


def made_outcomes() -> Outcomes:
    return Outcomes(
        Outcome(sample_id=f"{task}-{index}", task=task, model=model, outcome=outcome, response="", n_response_tokens=0)
        for task, n in (("sum", 6), ("pair", 2))
        for index in range(n)
        for model, outcome in MADE
    )


def test_what_is_read_is_at_most_max_samples_and_the_size_is_all() -> None:
    found = gained_samples(made_outcomes(), CONFIG, {"sum": ["sum-0"]})
    assert {task: len(ids) for task, ids in found.ids.items()} == {"sum": 3, "pair": 2}
    assert found.sizes == {"sum": 5, "pair": 2}


def test_a_trained_task_cannot_be_named_to_select() -> None:
    config = CONFIG.replace(tasks=("pair", "sum"), trained=("sum",))
    with pytest.raises(ConfigError, match=r"select\.tasks names 'sum', which post-training saw") as error:
        gained_samples(made_outcomes(), config, {})
    assert "\n" not in str(error.value)
    assert set(gained_samples(made_outcomes(), config.replace(tasks=("pair",)), {}).ids) == {"pair"}
