"""Scorers that compare text: ``exact``, ``numeric``, ``letter`` and ``final:<MARKER>``."""

import re
from dataclasses import dataclass

from mechprobe.evals.scorer import Scorer
from mechprobe.types import OutcomeName

LETTERS = "ABCDEFGHIJ"
"""Letters of options, in order."""

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_WRAP = "()[]{}*_.,:; \t\n\"'`$"
_STATED = re.compile(
    rf"(?:[Aa]nswer|ANSWER)(?:\s+is)?\s*:?\s*(?:option\s+)?[*_`\"'$]*"
    rf"(?:\(([{LETTERS}{LETTERS.lower()}])\)|([{LETTERS}])(?![A-Za-z'’]))"
)
_BOXED = re.compile(rf"\\boxed\s*\{{\s*(?:\\text\s*\{{\s*)?\(?([{LETTERS}{LETTERS.lower()}])\)?\s*\}}")
_LEADING = re.compile(rf"\(?([{LETTERS}])(?:[.):]|\s*\n)")
_BRACKETED = re.compile(rf"\(([{LETTERS}])\)")


@dataclass(frozen=True)
class RuleScorer(Scorer):
    """Takes the answer out of a response by a fixed rule and compares it as text."""

    def score(self, response: str, answer: str) -> OutcomeName:
        """Score one response; ``unparsed`` where the rule finds no answer in it."""
        found = self.extract(response)
        if found is None:
            return "unparsed"
        return "right" if found == self.expected(answer) else "wrong"

    def extract(self, response: str) -> str | None:
        """The answer that a response gives, or None where there is none."""
        if self.spec == "exact":
            return response.strip() or None
        if self.spec == "numeric":
            return _last_number(response)
        if self.spec == "letter":
            return option_letter(response)
        return _after_last(response, self.spec.partition(":")[2].strip())

    def expected(self, answer: str) -> str:
        """The right answer in the form that `extract` gives."""
        if self.spec == "numeric":
            return _as_number(answer) or answer.strip()
        if self.spec == "letter":
            return answer.strip(_WRAP).upper()
        return answer.strip() if self.spec == "exact" else _without_blanks(answer)

    def check(self, answer: str) -> str | None:
        """For ``letter``, whether the answer is one."""
        if self.spec != "letter" or (len(self.expected(answer)) == 1 and self.expected(answer) in LETTERS):
            return None
        return f"the answer {answer!r} is no option letter; write one of {LETTERS[0]} to {LETTERS[-1]}"


def option_letter(response: str) -> str | None:
    r"""The option letter (A to J) that a response gives, or None. The rule is ours; the first that finds one decides.

    1. The response is nothing but a letter, brackets and punctuation aside.
    2. The last ``\boxed{B}``.
    3. The last letter after "answer", "answer is" or "answer:"; a small letter in brackets only.
    4. A capital at the very beginning, followed by ``.``, ``)``, ``:`` or the end of the line.
    5. The last capital in round brackets.

    So an article ("A dog") or a pronoun ("I think") is never taken for an option.

    Example:
        >>> option_letter("Because of this, the answer is (c).")
        'C'
        >>> option_letter("A dog, I think") is None
        True
    """
    bare = response.strip(_WRAP)
    if len(bare) == 1 and bare.upper() in LETTERS:
        return bare.upper()
    for pattern in (_BOXED, _STATED):
        found = pattern.findall(response)
        if found:
            last = found[-1]
            return (last if isinstance(last, str) else next(part for part in last if part)).upper()
    leading = _LEADING.match(response.lstrip(" \t\n*_`\"'"))
    if leading:
        return leading.group(1)
    bracketed = _BRACKETED.findall(response)
    return bracketed[-1] if bracketed else None


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _after_last(response: str, marker: str) -> str | None:
    _, found, tail = response.rpartition(marker)
    return (_without_blanks(tail) or None) if found else None


def _as_number(text: str) -> str | None:
    cleaned = text.replace(",", "").strip()
    try:
        value = float(cleaned)
    except ValueError:
        return None
    return str(int(value)) if value.is_integer() else repr(value)


def _last_number(response: str) -> str | None:
    numbers = _NUMBER.findall(response)
    return _as_number(numbers[-1]) if numbers else None
