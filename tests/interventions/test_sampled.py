"""Effects and verdicts on several responses to each sample: the sample is the unit, and one draw gives what it always gave."""

import numpy as np
import pytest

from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import json_value
from mechprobe.interventions.verdicts.effects import effects_on_tasks, with_pooled
from mechprobe.interventions.verdicts.paired import where_code
from mechprobe.interventions.verdicts.rule import rule_text
from mechprobe.statistics import clustered_difference, clustered_interval, sign_flip_exact
from mechprobe.types import POOLED


def right_of(codes: str, n_samples: int) -> np.ndarray:
    return where_code(codes, "R", n_samples)


def test_codes_become_samples_and_draws() -> None:
    assert right_of("RWUCRR", 3).tolist() == [[True, False], [False, False], [True, True]]
    assert right_of("RW", 2).tolist() == [[True], [False]]
    assert right_of("", 0).shape == (0, 1)


def test_effects_of_draws_by_hand() -> None:
    clean, edited = right_of("RRWWWWWR", 4), right_of("WRWRRRWR", 4)
    found = effects_on_tasks({"t": clean}, {"t": edited})
    assert found.accuracy["t"] == clustered_interval([1, 1, 2, 1], [2, 2, 2, 2])
    assert found.accuracy_delta["t"] == clustered_difference([1.0, 0.0, 0.0, 0.5], [0.5, 0.5, 1.0, 0.5])
    assert found.mcnemar_p["t"] == sign_flip_exact([2, 0, 0, 1], [1, 1, 2, 1]) == 0.75
    # of 3 right draws one is lost, among samples 1 and 4; of 5 wrong draws three are gained, among samples 2, 3 and 4
    assert found.flip_rate_of_right["t"] == clustered_interval([1, 0], [2, 1])
    assert found.flip_rate_of_wrong["t"] == clustered_interval([1, 2, 0], [2, 2, 1])
    assert found.n_draws == {"t": 2}


def test_one_draw_leaves_no_trace_in_the_result() -> None:
    found = effects_on_tasks({"t": right_of("RW", 2)}, {"t": right_of("RR", 2)})
    assert "n_draws" not in json_value(found)
    assert found.given() == {name: getattr(found, name) for name in found.given()}
    assert "McNemar" in rule_text(InterveneConfig())
    assert "draw" not in rule_text(InterveneConfig())


def test_options_that_are_compared_count_as_equal_draws() -> None:
    pooled = with_pooled({"drawn": right_of("RWRR", 2), "options": right_of("RW", 2)}, ["drawn", "options"])[POOLED]
    assert pooled.tolist() == [[True, False], [True, True], [True, True], [False, False]]


def test_the_rule_names_the_test_and_the_unit() -> None:
    text = rule_text(InterveneConfig(), n_draws=4)
    assert "share of right responses, 4 to each sample; the sample is the unit" in text
    assert "exact sign-flip test" in text
    assert "the sign-flip p is Holm-adjusted over the main edits (4)" in text
    assert "McNemar" not in text


@pytest.mark.parametrize("n_draws", [1, 5])
def test_equal_draws_change_no_accuracy(n_draws: int) -> None:
    right = np.repeat(right_of("RWRW", 4), n_draws, axis=1)
    found = effects_on_tasks({"t": right}, {"t": ~right})
    assert found.accuracy["t"].value == 0.5
    assert found.accuracy_delta["t"].value == 0.0
    assert found.flip_rate_of_right["t"].value == found.flip_rate_of_wrong["t"].value == 1.0
