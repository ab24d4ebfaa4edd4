"""Scorers that extract the answer by a fixed rule, and the base class of all scorers."""

import re
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from mechprobe.errors import DependencyError
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

    @abstractmethod
    def score(self, response: str, answer: str) -> OutcomeName:
        """The outcome of one response, given the right answer."""

    def answer(self, response: str) -> str | None:
        """The answer in a response as text, by which responses of one sample are counted; None where there is none.

        Scorers that cannot extract one count the whole response.
        """
        return response.strip() or None

    def check(self, answer: str) -> str | None:
        """Why no response could ever match this answer of the task file, as a clause; None if one could."""
        del answer
        return None


LETTERS = "ABCDEFGHIJ"
"""Option letters, in order."""

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+(?!\w))?")
_WRAP = "()[]{}*_.,:; \t\n\"'`$"
_STATED = re.compile(
    rf"(?:[Aa]nswer|ANSWER)(?:\s+is)?\s*(?::\s*)?(?P<option>option\s+)?[*_`\"'$]*"
    rf"(?:\(([{LETTERS}{LETTERS.lower()}])\)|(?P<bare>[{LETTERS}])(?![A-Za-z'’]))"
)
_PROSE = {
    letter: re.compile(rf"[^\S\n]+(?!(?:{words})(?![\w-]))[*_]*[a-z]")
    for letter, words in (
        ("I", "because|since|is|or|and|but|which"),
        ("A", "because|since|is|or|and|but|which|as|for|was|if|while|from|in|on|with"),
    )
}
"""A lower-case word after I or A marks it as a pronoun or an article, unless it is a word that can follow an option."""
_BOXED = re.compile(rf"\\boxed\s*\{{\s*(?:\\text\s*\{{\s*)?\(?([{LETTERS}{LETTERS.lower()}])\)?\s*\}}")
_LEADING = re.compile(rf"\(?([{LETTERS}])(?:[.):]|\s*\n)")
_BRACKETED = re.compile(rf"\(([{LETTERS}])\)")


@dataclass(frozen=True)
class RuleScorer(Scorer):
    """Extracts the answer from a response by a fixed rule and compares it with the right answer."""

    def score(self, response: str, answer: str) -> OutcomeName:
        """The outcome of one response; ``unparsed`` if the rule finds no answer in it."""
        found = self.extract(response)
        if found is None:
            return "unparsed"
        return "right" if found == self.expected(answer) else "wrong"

    def extract(self, response: str) -> str | Decimal | None:
        """The answer in a response, exact to the last digit for ``numeric``; None if the rule finds none."""
        if self.spec == "exact":
            return response.strip() or None
        if self.spec == "numeric":
            numbers = _NUMBER.findall(response)
            return _as_number(numbers[-1]) if numbers else None
        if self.spec == "letter":
            return option_letter(response)
        _, found, tail = response.rpartition(self.spec.partition(":")[2].strip())
        return (_without_blanks(tail) or None) if found else None

    def answer(self, response: str) -> str | None:
        """What `extract` finds, as text; numbers of one value have one text."""
        found = self.extract(response)
        return f"{found.normalize():f}" if isinstance(found, Decimal) else found

    def expected(self, answer: str) -> str | Decimal:
        """The right answer in the form that `extract` returns."""
        if self.spec == "numeric":
            number = _as_number(answer)
            return answer.strip() if number is None else number
        if self.spec == "letter":
            return _bare_letter(answer)
        return answer.strip() if self.spec == "exact" else _without_blanks(answer)

    def check(self, answer: str) -> str | None:
        """For ``letter``, whether the answer is a single option letter."""
        if self.spec != "letter" or (len(_bare_letter(answer)) == 1 and _bare_letter(answer) in LETTERS):
            return None
        return f"the answer {answer!r} is not an option letter; write a letter from {LETTERS[0]} to {LETTERS[-1]}"


def option_letter(response: str) -> str | None:
    r"""The option letter (A to J) in a response, or None.

    mechprobe's own rules are tried in this order, and the first that finds a letter decides:

    1. The whole response is a letter, apart from brackets and punctuation.
    2. The last ``\boxed{B}``.
    3. The last letter after "answer", "answer is" or "answer:". A lower-case letter must be in brackets. An I or A before
       a lower-case word is a pronoun or an article, except before words that can follow an option ("A because", "A is
       right") and after "option".
    4. A capital at the very beginning, followed by ``.``, ``)``, ``:`` or the end of the line.
    5. The last capital in round brackets.

    An article ("A dog") or a pronoun ("I think") is therefore never mistaken for an option.
    """
    bare = _bare_letter(response)
    if len(bare) == 1 and bare in LETTERS:
        return bare
    boxed = _BOXED.findall(response)
    if boxed:
        return boxed[-1].upper()
    stated = [found for found in _STATED.finditer(response) if not _is_word(found)]
    if stated:
        return stated[-1][stated[-1].lastindex or 0].upper()
    leading = _LEADING.match(response.lstrip(" \t\n*_`\"'"))
    if leading:
        return leading.group(1)
    bracketed = _BRACKETED.findall(response)
    return bracketed[-1] if bracketed else None


def _is_word(stated: re.Match[str]) -> bool:
    """Whether a matched I or A is a pronoun or an article."""
    prose = None if stated["option"] else _PROSE.get(stated["bare"])
    return prose is not None and prose.match(stated.string, stated.end()) is not None


def _bare_letter(text: str) -> str:
    return text.strip(_WRAP).upper()


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _as_number(text: str) -> Decimal | None:
    """The exact value of a number with optional thousands separators; None for any other text."""
    try:
        value = Decimal(text.replace(",", "").strip())
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


SECONDS = 5
"""Time limit of math-verify for parsing or comparing one answer; a comparison that exceeds it counts as unequal."""
_BOX = "\\boxed{"


@dataclass(frozen=True)
class BoxedScorer(Scorer):
    r"""Compares the content of the last ``\boxed{...}`` with the answer: ``\frac12``, ``0.5`` and ``1/2`` are equal.

    The answer may be bare, between dollar signs, or in a box. ``math_verify.parse`` and ``math_verify.verify`` have their
    default settings. A response without a complete box is ``unparsed``.
    """

    def score(self, response: str, answer: str) -> OutcomeName:
        """The outcome of one response."""
        import math_verify

        content = last_boxed(response)
        if content is None or not content.strip():
            return "unparsed"
        found, gold = _parsed(f"{_BOX}{content}}}"), _gold(answer)
        return "right" if found and math_verify.verify(gold, found, timeout_seconds=_seconds()) else "wrong"

    def answer(self, response: str) -> str | None:
        """The content of the last complete box, without blanks."""
        return _without_blanks(last_boxed(response) or "") or None

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


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` with balanced braces, or None."""
    start = text.rfind(_BOX)
    while start >= 0:
        depth = 1
        for place in range(start + len(_BOX), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start + len(_BOX) : place]
        start = text.rfind(_BOX, 0, start)
    return None


@lru_cache(maxsize=65_536)
def _gold(answer: str) -> Any:
    return _parsed(answer if "$" in answer or _BOX in answer else f"{_BOX}{answer}}}")


def _parsed(text: str) -> Any:
    import math_verify

    return math_verify.parse(text, parsing_timeout=_seconds())


def _seconds() -> Any:
    """The time limit; None, which math-verify accepts, outside the main thread, because it enforces the limit with a signal."""
    return SECONDS if threading.current_thread() is threading.main_thread() else None
