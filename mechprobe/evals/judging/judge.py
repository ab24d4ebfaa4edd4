"""What a judge reads and says, and which judges there are. A verdict is a number; None means that it is undecided."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mechprobe.errors import InputError
from mechprobe.evals.judging.config import JudgeConfig, Reads
from mechprobe.evals.rollouts.answers import Question
from mechprobe.evals.scorers.parse import called, function_scorer, named_scorer
from mechprobe.formatting import short_repr
from mechprobe.records import Sample

Verdict = float | None
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_NAMED = re.compile(rf"(?:score|rating)\W{{0,6}}{_NUMBER}(?!\d)", re.IGNORECASE)
_PLAIN = re.compile(rf"(?<![\d.]){_NUMBER}(?![\d.]*\d)")
_FIELD = re.compile(r"\{(prompt|response|answer)\}")


class Judged(NamedTuple):
    """A response that is to be judged: which it is, its sample, and the part of it after the thinking."""

    question: Question
    sample: Sample
    text: str

    @property
    def where(self) -> str:
        """Name of the response in messages."""
        return f"The response of {self.question}"


class Judge(ABC):
    """Gives verdicts on responses."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """The JSON value on which verdicts depend besides the responses."""

    def identity_for(self, model: str) -> dict[str, Any]:
        """The same for the responses of one model."""
        del model
        return self.identity

    @abstractmethod
    def verdicts(self, judged: Sequence[Judged], folder: Path) -> list[Verdict]:
        """The verdicts in the given order. A judge that is asked over a network keeps its answers in ``folder``.

        Raises:
            InputError: A response does not fit the judge.
        """

    def release(self) -> None:
        """Free what the judge has loaded."""
        return


def filled(template: str, judged: Judged) -> str:
    """The template with prompt, response and right answer; what they contain is not filled in again."""
    values = {"prompt": judged.sample.prompt, "response": judged.text, "answer": judged.sample.answer}
    return _FIELD.sub(lambda found: values[found[1]], template)


def read_verdict(text: str, reads: Reads, scale: tuple[float, float], *, cut: bool = False) -> Verdict:
    """The verdict in a text, or None if it holds none or more than one.

    ``yes_no``: 1 or 0 if the text has only one of the two words, or begins with one. ``score``: the last number behind *score*
    or *rating*, else the only number in the text; None off the scale, and in a text that was ``cut``, perhaps inside the number.
    The rules are ours.
    """
    if reads == "yes_no":
        words = [word.lower() for word in _WORD.findall(text)]
        opening = _WORD.match(text.lstrip(" \n\t\"'*`[(<"))
        if opening:
            words = [opening[1].lower()]
        return float(words[0] == "yes") if len(set(words)) == 1 else None
    if cut:
        return None
    named, plain = _NAMED.findall(text), _PLAIN.findall(text)
    found = named[-1:] or (plain if len(plain) == 1 else [])
    value = float(found[0]) if found else None
    return value if value is not None and scale[0] <= value <= scale[1] else None


class FunctionJudge(Judge):
    """A Python function of prompt and response; it returns True, False, yes, no, a number, or None where it is undecided."""

    def __init__(self, config: JudgeConfig, function: Callable[[str, str], Any] | None = None) -> None:
        super().__init__(config)
        self._scorer = named_scorer(config.function, "Judge") if function is None else function_scorer(function)

    @classmethod
    def of(cls, function: Callable[[str, str], Any], config: JudgeConfig | None = None) -> "FunctionJudge":
        """The judge of a function; ``config`` says how its verdicts are read."""
        spec = function_scorer(function).spec
        return cls(JudgeConfig(function=spec) if config is None else config.replace(function=spec), function)

    @property
    def identity(self) -> dict[str, Any]:
        """Name and digest of the function."""
        return {"function": self._scorer.identity}

    def verdicts(self, judged: Sequence[Judged], folder: Path) -> list[Verdict]:
        """Call the function on every response; `ConfigError` if it fails, or returns something else."""
        del folder
        return [self._verdict(one) for one in judged]

    def _verdict(self, judged: Judged) -> Verdict:
        name = f"Judge '{self.config.function}'"
        value = called(self._scorer.function, (judged.sample.prompt, judged.text), name, judged.text)
        return checked_verdict(value, self.config, f"{name} returned {short_repr(value)}")


def checked_verdict(value: Any, config: JudgeConfig, said: str) -> Verdict:
    """A verdict as a number; `InputError`, which begins with ``said``, if the value is none."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return None
    if isinstance(value, str) and value.lower() in ("yes", "no") and config.reads == "yes_no":
        return float(value.lower() == "yes")
    low, high = config.ends
    if isinstance(value, bool | int | float) and low <= value <= high and (config.reads == "score" or value in (0, 1)):
        return float(value)
    wanted = "yes or no" if config.reads == "yes_no" else f"a number from {low:g} to {high:g}"
    raise InputError(f"{said}; a verdict is {wanted}, or null where it is undecided.")
