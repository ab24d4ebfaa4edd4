"""Records of a selection: counts that agree, both counts of gained samples, and controls that are used again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechprobe.cli.selection_lines import selection_lines
from mechprobe.errors import ConfigError
from mechprobe.files import read_json
from mechprobe.records import Outcome, OutcomeName, Outcomes
from mechprobe.selection.agnostic import AgnosticCounts, threshold_stability
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.controls import match_quality
from mechprobe.selection.gained import Gained, gained_samples
from mechprobe.selection.result import Selection, SelectionSummary, choose
from mechprobe.selection.scores import Scores
from mechprobe.selection.stability import Stability
from mechprobe.selection.summary import selection_frame, selection_summary

#             feature: 0    1    2    3    4    5
JOINT = np.array([[1.0, 0.9, 0.8, 0.3, 0.1, 0.0], [1.0, 0.9, 0.1, 0.4, 0.1, 0.0]])
DEAD = 1
CONFIG = SelectConfig(rule="agnostic", n_controls=0, n_bootstrap=0, max_samples=3, min_gained=1)
GAINED = Gained({"sum": ["s0", "s1", "s2"], "pair": ["p0", "p1"]}, {"sum": 5, "pair": 2}, {})


def scores() -> Scores:
    """Feature 1 is dead but has values, as a read-out of a single model can give it."""
    ones = np.ones(6)
    density = ones.copy()
    density[DEAD] = 0.0
    fires = np.tile(density > 0, (2, 1))
    return Scores(("sum", "pair"), (3, 2), JOINT, JOINT, density, ones, ones, np.zeros(4), np.zeros(4), fires)


def chosen(rule: str) -> Selection:
    made = choose(scores(), rule, site="resid_post.1", crosscoder="x", n_controls=0)
    thresholds = threshold_stability(JOINT, ("sum", "pair"), made.features, live=made.scores.live, thresholds=(0.2,))
    return replace(made, stability=Stability(thresholds=thresholds))


def test_dead_features_count_nowhere() -> None:
    summary = selection_summary(chosen("agnostic"), CONFIG, gained=GAINED, attribution={})
    assert summary.features == summary.agnostic == (0, 3)
    assert summary.n_agnostic == 2
    counts = AgnosticCounts(per_task={"sum": 3, "pair": 2}, all_tasks=2)
    assert summary.agnostic_sizes == {"joint": counts, "score": counts}
    assert summary.stability is not None
    [at_threshold] = summary.stability.thresholds.sizes
    assert (at_threshold.all_tasks, at_threshold.per_task) == (2, {"sum": 3, "pair": 2})


def test_the_json_of_a_selection_holds_every_key_and_reads_back(tmp_path: Path) -> None:
    summary = selection_summary(chosen("agnostic"), CONFIG, gained=GAINED, attribution={})
    summary.save(tmp_path / "selection.json")
    data = read_json(tmp_path / "selection.json")
    assert set(data) == set(SelectionSummary.model_fields)
    assert data["control_match"] == data["attribution"] == {}
    assert set(data["stability"]) == {"thresholds"}
    assert SelectionSummary.load(tmp_path / "selection.json") == summary


def test_a_dead_feature_that_is_named_is_not_task_agnostic() -> None:
    made = chosen("ids:1,0")
    assert made.n_agnostic == 1
    frame = selection_frame(made)
    assert frame["agnostic"].tolist() == [False, True]
    assert frame["above_0.2"].tolist() == [False, True]


def test_samples_gained_and_samples_read_are_both_reported() -> None:
    summary = selection_summary(chosen("agnostic"), CONFIG, gained=GAINED, attribution={})
    assert summary.n_gained == {"sum": 3, "pair": 2}
    assert summary.gained_sizes == {"sum": 5, "pair": 2}
    assert selection_lines(summary)[0].endswith("sum 5 (3 read), pair 2")


# --- controls -----------------------------------------------------------------------------------------------------


def stored(n_controls: int = 4, seed: int = 7) -> Selection:
    """A selection of 3 of 40 features with its controls."""
    rng = np.random.default_rng(0)
    values, sizes = rng.random((2, 40)), rng.uniform(0.5, 2, (3, 40))
    scores = Scores(("sum", "pair"), (3, 2), values, values[::-1], *sizes, np.zeros(4), np.zeros(4), values > 0)
    return choose(scores, "top:3", site="resid_post.1", crosscoder="x", n_controls=n_controls, seed=seed)


def test_the_same_settings_choose_the_stored_selection_whatever_the_seed() -> None:
    selection = stored()
    assert selection.choose("top:3", seed=99) is selection
    assert selection.choose("top:3", ranking="joint", n_controls=4, threshold=0.2, seed=99) is selection


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_controls_are_the_first_stored_ones(n: int) -> None:
    selection = stored()
    found = selection.choose("top:3", n_controls=n, seed=99)
    assert found.controls == selection.controls[:n]
    match = match_quality(selection.features, selection.controls[:n], selection.scores.covariates)
    assert repr(found.control_match) == repr(match)  # the overlap of a single set is NaN
    assert (found.features, found.left_out) == (selection.features, selection.left_out)


@pytest.mark.parametrize(
    "settings",
    [{"rule": "top:4"}, {"ranking": "score"}, {"threshold": 0.5}, {"n_controls": 5}],
    ids=["rule", "ranking", "threshold", "more controls"],
)
def test_other_settings_draw_new_controls_from_the_given_seed(settings: dict[str, Any]) -> None:
    selection = stored()
    asked = {"rule": "top:3", "ranking": "joint", "threshold": 0.2, "n_controls": 4} | settings
    found = selection.choose(**asked, seed=99)
    expected = choose(selection.scores, site="resid_post.1", crosscoder="x", **asked, seed=99)
    assert found.controls == expected.controls
    assert found.features == expected.features
    assert found.stability is None


def test_a_stored_set_of_a_file_does_not_need_the_file_again(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("3 5")
    selection = choose(stored().scores, f"file:{path}", site="resid_post.1", crosscoder="x", n_controls=2)
    path.unlink()
    assert selection.choose(f"file:{path}", n_controls=1).features == (3, 5)


# --- gained samples -----------------------------------------------------------------------------------------------


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
    with pytest.raises(ConfigError, match="'sum', and a task that post-training saw") as error:
        gained_samples(made_outcomes(), config, {})
    assert "\n" not in str(error.value)
    assert set(gained_samples(made_outcomes(), config.replace(tasks=("pair",)), {}).ids) == {"pair"}
