"""Rewards of scorers and functions, and of responses that were cut."""

import math
import sys
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechprobe.errors import ConfigError
from mechprobe.evals.scorers.parse import FunctionScorer, scorer
from mechprobe.posttrain.reward import Rewards, reward, reward_interval
from tests.sums import digit_share, even_length


@pytest.mark.parametrize(
    ("spec", "response", "answer", "value"),
    [
        ("final:ANS", "THINK ANS 12", "12", 1.0),
        ("final:ANS", "THINK ANS 13", "12", 0.0),
        ("final:ANS", "no answer", "12", 0.0),
        ("numeric", "so it is 1,200", "1200", 1.0),
        (even_length, "ab", "", 1.0),
        (even_length, "<think>abc</think>abc", "", 0.0),
        (digit_share, "a1", "", 0.5),
        (lambda _r, _a: "right", "", "", 1.0),
    ],
)
def test_reward_of_a_response(spec: object, response: str, answer: str, value: float) -> None:
    assert reward(scorer(spec), response, answer) == value  # type: ignore[arg-type]


class Unshown:
    """A value whose text cannot be made."""

    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    "returned",
    [None, math.nan, math.inf, "good", "x" * 999, 10**400, -(10**5000), 1 + 1j, np.complex128(1), [1], np.ones(99)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_reward_is_refused(returned: object) -> None:
    with pytest.raises(ConfigError, match="must return True, False, an outcome, or a finite number") as told:
        reward(scorer(_giving(returned)), "x", "y")
    assert len(str(told.value)) < 300
    assert str(told.value).isprintable()


def _giving(value: object) -> FunctionScorer:
    """A scorer with a result whose text need not exist, which the digest of a closure would ask for."""
    return FunctionScorer("python:here:giving", lambda _response, _answer: value, "")


def test_what_cannot_be_shown_is_named_by_its_type() -> None:
    with pytest.raises(ConfigError, match="returned a value of Unshown; it must return"):
        reward(_giving(Unshown()), "x", "y")


@pytest.mark.parametrize("returned", [True, np.bool_(True), 1, np.int64(1), np.float32(1)])
def test_numbers_and_truth_values_are_rewards(returned: object) -> None:
    assert reward(scorer(lambda _r, _a: returned), "x", "y") == 1


def test_a_function_that_ends_the_program_is_told() -> None:
    with pytest.raises(ConfigError, match=r"failed on the response 'x' \(SystemExit: 3\); fix the function"):
        reward(scorer(lambda _r, _a: sys.exit(3)), "x", "y")


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=2), min_size=2, max_size=9))
def test_the_interval_of_a_share_stays_in_it(groups: list[list[float]]) -> None:
    rewards = [value for group in groups for value in group]
    low, high = reward_interval(rewards, [place for place in range(len(groups)) for _ in range(2)])
    assert 0 <= low <= fmean(rewards) <= high <= 1
    assert low < high


def test_the_interval_of_other_numbers_is_of_their_mean() -> None:
    found = reward_interval([3.0, 3.0, -1.0, -1.0], [0, 0, 1, 1])
    assert found == pytest.approx((1 - 1.96 * 2, 1 + 1.96 * 2), abs=1e-3)


def test_a_failing_function_is_told() -> None:
    def fails(response: str, answer: str) -> bool:
        raise ValueError(response + answer)

    with pytest.raises(ConfigError, match=r"failed on the response 'x' .*fix the function"):
        reward(scorer(fails), "x", "y")


def test_cut_responses_get_nothing_unless_asked() -> None:
    logged = {}
    texts, ids, index = ["ANS 1", "ANS 1", "ANS 2"], [[5, 2], [5, 5], [5, 2]], [0, 0, 1]
    found = Rewards("final:ANS", ["1", "2"], end_ids=[2])(texts, ids, index, log_metric=logged.__setitem__)
    assert found == [1.0, 0.0, 1.0]
    assert logged["reward_se"] == pytest.approx(0.25)
    assert (logged["reward_low"], logged["reward_high"]) == reward_interval(found, index)
    assert Rewards("final:ANS", ["1", "2"], score_cut=True)(texts, ids, index) == [1.0, 1.0, 1.0]
