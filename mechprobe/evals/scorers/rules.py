"""Scorers that compare text: ``exact``, ``numeric``, ``letter`` and ``final:<MARKER>``."""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from mechprobe.evals.scorers.scorer import Scorer
from mechprobe.types import OutcomeName

LETTERS = "ABCDEFGHIJ"
"""Letters of options, in order."""

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
"""What behind the letter makes it a pronoun or an article: a word in small letters that does not go on from an option."""
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

    def extract(self, response: str) -> str | Decimal | None:
        """The answer that a response gives (of ``numeric`` the exact number), or None where there is none."""
        if self.spec == "exact":
            return response.strip() or None
        if self.spec == "numeric":
            return _last_number(response)
        if self.spec == "letter":
            return option_letter(response)
        return _after_last(response, self.spec.partition(":")[2].strip())

    def expected(self, answer: str) -> str | Decimal:
        """The right answer in the form that `extract` gives."""
        if self.spec == "numeric":
            number = _as_number(answer)
            return answer.strip() if number is None else number
        if self.spec == "letter":
            return _bare_letter(answer)
        return answer.strip() if self.spec == "exact" else _without_blanks(answer)

    def check(self, answer: str) -> str | None:
        """For ``letter``, whether the answer is one."""
        if self.spec != "letter" or (len(_bare_letter(answer)) == 1 and _bare_letter(answer) in LETTERS):
            return None
        return f"the answer {answer!r} is no option letter; write one of {LETTERS[0]} to {LETTERS[-1]}"


def option_letter(response: str) -> str | None:
    r"""The option letter (A to J) that a response gives, or None. The rule is ours; the first that finds one decides.

    1. The response is nothing but a letter, brackets and punctuation aside.
    2. The last ``\boxed{B}``.
    3. The last letter after "answer", "answer is" or "answer:"; a small letter in brackets only. An I or A before a
       word in small letters is a pronoun or an article and no letter, but for words that go on from an option ("A
       because", "A is right") and behind "option".
    4. A capital at the very beginning, followed by ``.``, ``)``, ``:`` or the end of the line.
    5. The last capital in round brackets.

    So an article ("A dog") or a pronoun ("I think") is never taken for an option.

    Example:
        >>> option_letter("Because of this, the answer is (c).")
        'C'
        >>> option_letter("Answer: A dog, I think") is None
        True
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
    """Whether the I or A that was found is a pronoun or an article."""
    prose = None if stated["option"] else _PROSE.get(stated["bare"])
    return prose is not None and prose.match(stated.string, stated.end()) is not None


def _bare_letter(text: str) -> str:
    return text.strip(_WRAP).upper()


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _after_last(response: str, marker: str) -> str | None:
    _, found, tail = response.rpartition(marker)
    return (_without_blanks(tail) or None) if found else None


def _as_number(text: str) -> Decimal | None:
    """The number, to its last digit."""
    try:
        value = Decimal(text.replace(",", "").strip())
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _last_number(response: str) -> Decimal | None:
    numbers = _NUMBER.findall(response)
    return _as_number(numbers[-1]) if numbers else None
