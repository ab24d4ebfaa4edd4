"""Rewards of scorers and functions, and of responses that were cut."""

import math

import pytest

from mechprobe.errors import ConfigError
from mechprobe.evals.scorers.parse import scorer
from mechprobe.posttrain.reward import Rewards, reward
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


@pytest.mark.parametrize("returned", [None, math.nan, math.inf, "good"])
def test_what_is_no_reward_is_refused(returned: object) -> None:
    with pytest.raises(ConfigError, match="must return True, False, an outcome, or a finite number"):
        reward(scorer(lambda _r, _a: returned), "x", "y")


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
    assert Rewards("final:ANS", ["1", "2"], score_cut=True)(texts, ids, index) == [1.0, 1.0, 1.0]
