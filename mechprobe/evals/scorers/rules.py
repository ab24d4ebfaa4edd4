"""Scorers that extract the answer by a fixed rule, and the base class of all scorers."""

import re
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
from mechprobe.evals.scorers.refusals import refuses
from mechprobe.types import OutcomeName

_YES_NO = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)


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
        """The answer in the answer part of a response, as text, for a majority over responses; None without one.

        Scorers that extract none take the whole text.
        """
        return text.strip() or None

    def check(self, answer: str) -> str | None:
        """Why no response could ever match this answer of the task file, as a clause; None if one could."""
        del answer
        return None


@dataclass(frozen=True)
class LaterScorer(Scorer):
    """Stands for a judge or a reward model that reads the responses when all are there; its outcomes are ``unparsed``.

    Such tasks need no right answers.
    """

    spec: str = "later"

    def judge(self, text: str, answer: str) -> OutcomeName:
        """Always ``unparsed``."""
        del text, answer
        return "unparsed"


@dataclass(frozen=True)
class RuleScorer(Scorer):
    """Extracts the answer from a response by a fixed rule and compares it with the right answer."""

    def judge(self, text: str, answer: str) -> OutcomeName:
        """The outcome of the first part of the answer in which the rule finds something; ``unparsed`` without one."""
        parts = [text] if len(blocks(answer)) > 1 else blocks(text)
        found = next((value for part in parts if (value := self.extract(part, answer)) is not None), None)
        if found is None:
            return "unparsed"
        return "right" if self._same(found, answer) else "wrong"

    def extract(self, text: str, answer: str = "") -> str | Number | None:
        """The answer in a text; None if the rule finds none. The number of lines read behind a MARKER is that of ``answer``."""
        match self.spec:
            case "exact":
                return text.strip() or None
            case "numeric":
                number = answered_number(text)
                return number if number and number.value is not None else None
            case "letter":
                return option_letter(text)
            case "yes_no":
                words = _YES_NO.findall(text)
                return words[-1].lower() if words else None
            case "refusal":
                return ("refuse" if refuses(text) else "comply") if text.strip() else None
        _, found, tail = text.rpartition(self._marker)
        lines = [line for line in tail.splitlines() if line.strip()]
        n = max(1, len(self._behind_marker(answer).split("\n")))
        return "".join(" ".join(lines[:n]).split()) or None if found else None

    def answer(self, text: str) -> str | None:
        """What the rule finds first, as text; equal numbers have one text."""
        found = first_found(text, self.extract)
        return f"{found.value}{'%' if found.percent else ''}" if isinstance(found, Number) else found

    def check(self, answer: str) -> str | None:
        """Why no response could be right, as a clause; None if one could."""
        match self.spec:
            case "exact":
                return None
            case "numeric":
                if gold_number(answer) is None:
                    return f"the answer {answer!r} is not one number; write it alone, or behind '####'"
            case "letter":
                if only_letter(answer) is None:
                    return f"the answer {answer!r} is not an option letter; write a letter from {LETTERS[0]} to {LETTERS[-1]}"
            case "yes_no" | "refusal":
                words = ("yes", "no") if self.spec == "yes_no" else ("refuse", "comply")
                if answer.strip().lower() not in words:
                    return f"the answer {answer!r} is neither {words[0]} nor {words[1]}; write one of them"
            case _:
                if not self._behind_marker(answer):
                    return f"the answer {answer!r} ends with {self._marker}, so that nothing is left to compare; complete it"
        return None

    def _same(self, found: str | Number, answer: str) -> bool:
        if isinstance(found, Number):
            gold = gold_number(answer)
            return gold is not None and found.equals(gold)
        if self.spec == "letter":
            return found == only_letter(answer)
        if self.spec == "exact":
            return found == answer.strip()
        if self.spec in ("yes_no", "refusal"):
            return found == answer.strip().lower()
        gold = self._behind_marker(answer)
        return found == "".join(gold.split()) or same_plain_number(found, gold)

    @property
    def _marker(self) -> str:
        return self.spec.partition(":")[2].strip()

    def _behind_marker(self, answer: str) -> str:
        """The answer without what stands before its last MARKER; data sets often keep the whole solution in this field."""
        return answer.rpartition(self._marker)[2].strip()


SECONDS = 5
"""Time limit of math-verify for parsing or comparing one answer; a comparison that exceeds it counts as unequal."""
LONGEST_ANSWER = 1000
"""Characters of a final answer that is parsed as mathematics; a longer one is not right, because parsing takes too long."""
_BOX = "\\boxed{"


@dataclass(frozen=True)
class BoxedScorer(Scorer):
    r"""Compares the content of the last ``\boxed{...}`` with the answer: ``\frac12``, ``0.5`` and ``1/2`` are equal.

    The answer may be bare, between dollar signs, or in a box. ``math_verify.parse`` and ``math_verify.verify`` have their
    default settings. A response without a complete box is ``unparsed``.
    """

    def judge(self, text: str, answer: str) -> OutcomeName:
        """The outcome of the answer part of a response."""
        import math_verify

        content = self.answer(text)
        if content is None:
            return "unparsed"
        if len(content) > max(LONGEST_ANSWER, 4 * len(answer)):
            return "wrong"
        found, gold = _parsed(f"{_BOX}{content}}}"), _gold(answer)
        return "right" if found and math_verify.verify(gold, found, timeout_seconds=_seconds()) else "wrong"

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
