"""Verifiable rewards: a scorer of mechprobe, or any function of response and answer."""

import math
from collections.abc import Sequence
from statistics import stdev
from typing import Any, get_args

import numpy as np

from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.scorers.answer_part import answer_part
from mechprobe.evals.scorers.parse import AnyScorer, FunctionScorer, called, scorer
from mechprobe.evals.scorers.rules import Scorer
from mechprobe.formatting import short_repr
from mechprobe.posttrain.examples import Example
from mechprobe.statistics import Z, clustered_interval
from mechprobe.types import OutcomeName


def require_answers(examples: Sequence[Example], judge: Scorer, field: str) -> list[str]:
    """The answers of all examples.

    Raises:
        InputError: An example has no answer, or one that no response could match.
    """
    answers = []
    for item in examples:
        if item.answer is None:
            raise InputError(f"{item.prompt} has no '{field}', which the scorer '{judge.spec}' reads; add it.")
        if defect := judge.check(item.answer):
            raise InputError(f"{item.prompt}: {defect} (scorer '{judge.spec}').")
        answers.append(item.answer)
    return answers


def reward(judge: Scorer, response: str, answer: str) -> float:
    """Reward of a response: 1 if the scorer calls it right, otherwise 0; a function may also return a number.

    Raises:
        ConfigError: A function failed, or returned neither an outcome nor a finite number.
    """
    if not isinstance(judge, FunctionScorer):
        return float(judge.score(response, answer) == "right")
    text = answer_part(response)
    if text is None:
        return 0.0
    value = called(judge.function, (text, answer), f"Scorer '{judge.spec}'", text)
    if isinstance(value, str) and value in get_args(OutcomeName):
        return float(value == "right")
    number = _finite(value)
    if number is None:
        raise ConfigError(
            f"Scorer '{judge.spec}' returned {short_repr(value)}; it must return True, False, an outcome, or a finite number."
        )
    return number


def _finite(value: Any) -> float | None:
    """A number as a finite float; None for anything else, also for a whole number beyond all floats."""
    if not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def reward_interval(rewards: Sequence[float], prompts: Sequence[int]) -> tuple[float, float]:
    """Two-sided 95 % interval of the mean reward over prompts, whose responses depend on each other.

    Where all rewards lie in [0, 1] it is `clustered_interval`, which does not leave them. Otherwise it is the mean
    ± 1.96 standard errors; NaN for one prompt.
    """
    if all(0 <= value <= 1 for value in rewards):
        groups = _by_prompt(rewards, prompts)
        found = clustered_interval([sum(values) for values in groups], [len(values) for values in groups])
        return found.low, found.high
    mean, half = sum(rewards) / len(rewards), Z * _clustered_se(rewards, prompts)
    return mean - half, mean + half


def _by_prompt(rewards: Sequence[float], prompts: Sequence[int]) -> list[list[float]]:
    groups: dict[int, list[float]] = {}
    for value, prompt in zip(rewards, prompts, strict=True):
        groups.setdefault(prompt, []).append(value)
    return list(groups.values())


def _clustered_se(rewards: Sequence[float], prompts: Sequence[int]) -> float:
    """Standard error of the mean reward over prompts, whose responses depend on each other; NaN for one prompt."""
    means = [sum(values) / len(values) for values in _by_prompt(rewards, prompts)]
    return stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan


class Rewards:
    """The reward function of one GRPO training, as TRL calls it.

    Args:
        judge: What judges a response.
        answers: Right answer of every prompt.
        score_cut: Whether responses that were cut at the limit are judged too; otherwise their reward is 0.
        end_ids: Tokens that end a response.
    """

    __name__ = "reward"

    def __init__(
        self, judge: AnyScorer, answers: Sequence[str], *, score_cut: bool = False, end_ids: Sequence[int] = ()
    ) -> None:
        self._judge = scorer(judge)
        self._answers, self._score_cut, self._end_ids = answers, score_cut, frozenset(end_ids)

    def __call__(
        self, completions: list[str], completion_ids: list[list[int]], index: list[int], **tools: Any
    ) -> list[float]:
        """Rewards of responses to the prompts with these indices; standard error and interval of their mean are logged."""
        found = [
            self._one(text, ids, self._answers[place])
            for text, ids, place in zip(completions, completion_ids, index, strict=True)
        ]
        if log := tools.get("log_metric"):
            low, high = reward_interval(found, index)
            for name, value in (("reward_se", _clustered_se(found, index)), ("reward_low", low), ("reward_high", high)):
                log(name, value)
        return found

    def _one(self, text: str, ids: list[int], answer: str) -> float:
        if not self._score_cut and (not ids or ids[-1] not in self._end_ids):
            return 0.0
        return reward(self._judge, text, answer)
