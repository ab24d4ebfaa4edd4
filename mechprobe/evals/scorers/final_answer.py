r"""Read the final answer of a response and compare it with the right one; the rules are mechprobe's own.

The final answer is the content of the last ``\boxed{...}``, or what follows the last ``ANS`` on its line, whichever comes
later. So the two renderings of an item have one reader. The text of the right answer decides how answers are compared:

* ``132``: an integer. Units, thousands separators, LaTeX and all kinds of minus signs are read; 132.0 is equal.
* ``9.81``: a number. Right is what differs by at most half a unit of the last decimal. ``3/4`` is exact.
* ``heap``: a word; case, blanks and markup do not count. So are dates such as ``2024-03-01`` and digits that begin with 0.
* ``2,3,3``: an ordered list. ``{2,3}``: a set, whose order and repetitions do not count.
* ``4:56``: a diagnosis, step 4 and its right value; ``none`` if no step is wrong.
* anything else: an expression, which math-verify compares.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from mechprobe.evals.scorers.answer_part import first_found
from mechprobe.evals.scorers.numbers import boxes, only_number
from mechprobe.evals.scorers.rules import LONGEST_ANSWER, Scorer, boxed_scorer
from mechprobe.types import OutcomeName

AnswerForm = Literal["integer", "number", "word", "list", "set", "expression", "diagnosis"]
"""How two answers are compared. The parts of a list or a set are separated by commas."""
NONE = "none"
"""Answer of a diagnostic item without an error."""

_ANS = re.compile(r"\bANS\b[ \t]*:?")
_BOX = re.compile(r"\\boxed\s+\{")
_FORMS: tuple[tuple[AnswerForm, re.Pattern[str]], ...] = (
    ("diagnosis", re.compile(rf"{NONE}|\d+:\S.*")),
    ("integer", re.compile(r"[-+]?(?:0|[1-9]\d*)")),
    ("number", re.compile(r"[-+]?(?:\d*\.\d+|\d+/\d+)")),
    ("set", re.compile(r"\{.*\}")),
    ("list", re.compile(r"\[.*\]|[^,(]+(?:,[^,)]+)+")),
    ("word", re.compile(r"[A-Za-z][A-Za-z '-]*|0\d+|\d{4}-\d\d-\d\d")),
)


class FinalAnswer(NamedTuple):
    """The final answer of a response, as text, and the response without it."""

    text: str
    rest: str


class Diagnosis(NamedTuple):
    """The step that is said to be wrong, None for no step, and the value that it should have, None if none is given."""

    step: int | None
    value: str | None


def form_of(answer: str) -> AnswerForm:
    """How answers are compared with a right answer, by its text alone."""
    for form, pattern in _FORMS:
        if pattern.fullmatch(answer.strip()):
            return form
    return "expression"


def final_answer(text: str) -> FinalAnswer | None:
    """The final answer in the first part of a response that has one; None without one, or if it is blank."""
    return first_found(_BOX.sub(r"\\boxed{", text), _final_answer)


def _final_answer(text: str) -> FinalAnswer | None:
    found = boxes(text)
    start, end = max(found, default=(-1, -1))
    content = text[start + len("\\boxed{") : end - 1].strip() if found else ""
    start = start if content else -1
    marked = [mark for mark in _ANS.finditer(text) if mark.start() > start]
    if marked:
        line = text[marked[-1].end() :].lstrip().partition("\n")[0]
        if line.strip():
            return FinalAnswer("".join(line.split()), text[: marked[-1].start()])
    return FinalAnswer(content, _without(text, found)) if start >= 0 else None


def _without(text: str, found: Iterable[tuple[int, int]]) -> str:
    """The text with a blank in place of each of its boxes, so that nothing in a box counts as said outside of it."""
    parts, place = [], 0
    for start, end in sorted(found):
        if start >= place:  # a box in a box goes with the outer one
            parts.append(text[place:start])
            place = end
    return " ".join([*parts, text[place:]])


def judge_answer(found: str, answer: str, form: AnswerForm) -> bool | None:
    """Whether a final answer is right; None if it cannot be read as an answer of this form, or is too long for any."""
    if len(found) > max(LONGEST_ANSWER, 4 * len(answer)):
        return None
    if form == "expression":
        return {"right": True, "wrong": False}.get(boxed_scorer("boxed").judge(f"\\boxed{{{found}}}", answer))
    if form == "integer" and _LEADING_ZERO.fullmatch(found.strip(" $.{}")):
        return False
    read = _READERS[form]
    value, gold = read(found), read(answer)
    if value is None:
        return None
    if isinstance(value, Fraction) and isinstance(gold, Fraction):
        return abs(value - gold) <= tolerance(answer)
    return value == gold


def tolerance(answer: str) -> Fraction:
    """Half a unit of the last decimal of a number; 0 for integers and fractions."""
    _, point, decimals = answer.strip().partition(".")
    return Fraction(1, 2 * 10 ** len(decimals)) if point else Fraction(0)


def canonical(found: str) -> str:
    """The text of a final answer in which equal numbers are one text, for a majority over responses."""
    number = read_number(found) if len(found) <= LONGEST_ANSWER else None
    return str(number) if number is not None else "".join(found.split()).casefold()


_EQUALS = re.compile(r"=|≈|\\approx(?![a-z])")
_UNITS = re.compile(r"\\(?:Omega|mu|ohm)(?![a-zA-Z])|[ΩΩµμ]")
_LATEX = re.compile(r"\\(?:left|right|text|textbf|textit|mathrm|mathbf|mathit|texttt|mathtt|operatorname)(?![a-zA-Z])")
_SPACES = re.compile(r"\\[,;:! ]|\\quad(?![a-z])|[~\u2009\u00a0]")
_DASHES = str.maketrans("\u2010\u2011\u2012\u2013\u2212", "-----")
_EMPTY = frozenset({"", "none", "empty", "emptyset", "\\emptyset", "\\varnothing", "∅", "theemptyset"})
_LEADING_ZERO = re.compile(r"0\d+")
"""Digits that are no number, for example a row of bits."""
_STEP = re.compile(r"(?i)\D{0,24}?(\d{1,4})(?!\d)\s*(?:\)|\])?\s*(?:(?:[:;,=|]|->|→|\\to\b|\\rightarrow\b|\s)\s*(.+))?")
_NO_STEP = re.compile(
    r"(?i)none|nothing|no(?:\s*(?:wrong|incorrect))?\s*(?:error|mistake|step|line|claim|statement)s?(?:\s*(?:is|are)\s*wrong)?"
    r"|all\s*(?:steps|lines|claims|statements)?\s*(?:are\s*)?(?:correct|right|true)"
)


def read_number(found: str) -> Fraction | None:
    """The number of an answer, behind its last equals sign; None for text that is not one number."""
    text = _UNITS.sub("ohm", _EQUALS.split(found)[-1])
    number = None if re.search(r"\d\s*!", text) else only_number(text)
    return None if number is None else number.value


def read_word(found: str) -> str | None:
    """A word without case, blanks and markup."""
    return re.sub(r"[\s${}()\[\]\"'`*_.,;:!“”‘’\\]", "", _LATEX.sub("", found).translate(_DASHES)).casefold() or None


def read_list(found: str) -> tuple[Fraction | str, ...] | None:
    """The elements of a list in order; numbers by value, everything else as words."""
    text = _SPACES.sub(" ", _LATEX.sub("", _EQUALS.split(found)[-1])).strip(" $.")
    text = re.sub(r"\\(?=[{}])", "", text).strip(" $.{}[]()")
    if "".join(text.split()).casefold() in _EMPTY:
        return ()
    parts = [part for part in re.split(r"[,;\n、，]|\\\\|\band\b", text) if part.strip()]
    elements = [number if (number := read_number(part)) is not None else read_word(part) for part in parts]
    return tuple(element for element in elements if element is not None) or None


def read_set(found: str) -> frozenset[Fraction | str] | None:
    """The elements of a set."""
    elements = read_list(found)
    return None if elements is None else frozenset(elements)


def read_diagnosis(found: str) -> Diagnosis | None:
    """The step and its right value: ``3:17``, ``(3, 17)``, ``step 3: 17``, or ``none``."""
    text = _SPACES.sub(" ", _LATEX.sub("", found)).strip(" ${}()[]*.\n")
    text = re.sub(r"[{}$]", "", text)
    if _NO_STEP.fullmatch(text):
        return Diagnosis(None, None)
    match = _STEP.fullmatch(text)
    if match is None:
        return None
    return Diagnosis(int(match[1]), _value(match[2]) if match[2] else None)


def _value(text: str) -> str | None:
    number = read_number(text)
    return str(number) if number is not None else read_word(text)


_READERS: dict[str, Callable[[str], object]] = {
    "integer": read_number,
    "number": read_number,
    "word": read_word,
    "list": read_list,
    "set": read_set,
    "diagnosis": read_diagnosis,
}


@dataclass(frozen=True)
class SkillScorer(Scorer):
    """The scorer ``skill``: reads and compares final answers as this module says."""

    def judge(self, text: str, answer: str) -> OutcomeName:
        """Right, wrong, or unparsed if no final answer can be read."""
        found = final_answer(text)
        verdict = None if found is None else judge_answer(found.text, answer, form_of(answer))
        return "unparsed" if verdict is None else "right" if verdict else "wrong"

    def answer(self, text: str) -> str | None:
        """The final answer; equal numbers have one text."""
        found = final_answer(text)
        return None if found is None else canonical(found.text)

    def check(self, answer: str) -> str | None:
        """Whether the answer can be compared with itself."""
        if judge_answer(answer, answer, form_of(answer)) is not True:
            return f"the answer {answer!r} cannot be compared; write a number, a word, a list, a set, a diagnosis or an expression"
        return None
