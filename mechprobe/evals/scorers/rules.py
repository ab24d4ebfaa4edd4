"""Scorers that extract the answer by a fixed rule, and the base class of all scorers."""

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from mechprobe.errors import DependencyError
from mechprobe.evals.scorers.answer_part import answer_part, blocks, first_found
from mechprobe.evals.scorers.letters import LETTERS, only_letter, option_letter
from mechprobe.evals.scorers.numbers import Number, answered_number, gold_number, last_boxed, same_plain_number
from mechprobe.types import OutcomeName


@dataclass(frozen=True)
class Scorer(ABC):
    """Judges a response as right, wrong or unparsed; `mechprobe.evals.scorers.parse.scorer` makes scorers."""

    spec: str
    """Its specification, as written on the command line."""

    @property
    def identity(self) -> str:
        """The text that represents the scorer in the fingerprint of its tasks."""
        return self.spec

    def score(self, response: str, answer: str) -> OutcomeName:
        """The outcome of a response that ended by itself, given the right answer; thinking between `THINK` is left out."""
        text = answer_part(response)
        return "unparsed" if text is None else self.judge(text, answer)

    @abstractmethod
    def judge(self, text: str, answer: str) -> OutcomeName:
        """The outcome of the answer part of a response, given the right answer."""

    def answer(self, text: str) -> str | None:
        """The content of the last complete box."""
        return first_found(text, lambda part: (last_boxed(part) or "").strip() or None)

    def check(self, answer: str) -> str | None:
        """Whether math-verify can parse the answer."""
        return None if _gold(answer) else f"math-verify cannot parse the answer {answer!r} as mathematics"


def boxed_scorer(spec: str) -> BoxedScorer:
    """The scorer; `DependencyError` if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise DependencyError(
            "The scorer 'boxed' needs math-verify, which is not installed: pip install 'mechprobe[evals]'."
        )
    return BoxedScorer(spec)


@lru_cache(maxsize=65_536)
def _gold(answer: str) -> Any:
    return _parsed(answer if "$" in answer or _BOX in answer else f"{_BOX}{answer}}}")


def _parsed(text: str) -> Any:
    import math_verify

    return math_verify.parse(text, parsing_timeout=_seconds())


def _seconds() -> Any:
    """The time limit; None, which math-verify accepts, outside the main thread, because it enforces the limit with a signal."""
    return SECONDS if threading.current_thread() is threading.main_thread() else None
