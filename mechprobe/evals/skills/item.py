"""A graded question of the benchmark, and the texts that every rendering shares."""

import hashlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from mechprobe.errors import InputError
from mechprobe.evals.scorers.final_answer import AnswerForm
from mechprobe.json_fields import json_kind

ANSWER_MARKER = "ANS"
"""Word before every final answer; the scorer `final:ANS` extracts the text after the last one."""
SHARED_MARKER = "THINK"
"""Word that opens a worked response in the renderings with one marker for all skills."""


@dataclass(frozen=True, slots=True)
class SkillItem:
    """One graded question. A question has the same id in every draw and every rendering.

    Attributes:
        id: Family and hash of the content.
        skill: Name of the skill.
        prompt: The question in its rendering.
        answer: The right answer.
        trace: A worked response with the right answer.
        domain: Name of the domain.
        family: Name of the family that drew it.
        level: 1 to 5; 6 is beyond the range of the levels.
        split: The split to which its content belongs, see `mechprobe.evals.skills.splits`.
        rendering: Name of the rendering of prompt and trace.
        version: Version of the family; items of one version and seed are equal to the byte.
        answer_form: How the scorer compares an answer with the right one.
        params: All parameters of the problem.
        steps: The worked steps.
        chance: Probability that a random answerer is right.
        rule: The fact or rule on which the answer rests, where the skill asks for one.
        rule_aliases: Further names of the rule.
        guided: Whether the prompt names the rule.
        pair: Shared by the guided and the unguided form of one question, which stand in one split.
        kind: The kind of a diagnostic item.
        step: The wrong step of a diagnostic item, from 1.
        corrected: What the wrong step should say.
    """

    id: str
    skill: str
    prompt: str
    answer: str
    trace: str
    domain: str = ""
    family: str = ""
    level: int = 1
    split: str = ""
    rendering: str = "compact"
    version: int = 1
    answer_form: str = "word"
    params: Mapping[str, Any] | None = None
    steps: tuple[str, ...] = ()
    chance: float = 0.0
    rule: str | None = None
    rule_aliases: tuple[str, ...] = ()
    guided: bool | None = None
    pair: str | None = None
    kind: str | None = None
    step: int | None = None
    corrected: str | None = None

    @property
    def task(self) -> str:
        """Name of the task in a tasks file: the cell, e.g. `calculation/mathematics`."""
        return f"{self.skill}/{self.domain}"

    def to_json(self) -> dict[str, Any]:
        """The item as a line of a tasks file; fields that its skill does not have are left out."""
        first = {"id": self.id, "task": self.task, "prompt": self.prompt, "answer": self.answer}
        rest = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in first}
        return first | {name: value for name, value in rest.items() if value is not None and value != ()}

    @classmethod
    def from_json(cls, line: Mapping[str, Any], where: str = "The line") -> "SkillItem":
        """The item of a line that `to_json` wrote; `mechprobe.evals.skills.labels.read_item` also compares its fields.

        Args:
            line: The fields; further ones are left out.
            where: Place of the line for messages.

        Raises:
            InputError: A field is missing, of a wrong type, or out of its range.
        """
        missing = [name for name in NEEDED if not isinstance(line.get(name), str)]
        if missing:
            raise InputError(
                f"{where} is no skill item: '{missing[0]}' is missing or no text; give a file of `mechprobe skills make`."
            )
        names = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in line.items() if name in names}
        wrong = [name for name, value in values.items() if not _fits(name, value)]
        if wrong:
            value = values[wrong[0]]
            shown = repr(value) if isinstance(value, str | int | float) else json_kind(value)
            raise InputError(f"{where}: '{wrong[0]}' must be {_FIELDS[wrong[0]]}, not {shown[:80]}; correct it.")
        for name in ("steps", "rule_aliases"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


NEEDED = ("id", "skill", "domain", "prompt", "answer", "trace")
"""Fields that every line of a skill item has."""
_NAME, _LABEL, _TEXT = "a name without control characters", "a text without control characters", "a text"
_FILLED, _WHOLE = "a text that is not blank", "a whole number from 1"
_OPTIONAL_LABEL, _OPTIONAL_TEXT = f"{_LABEL} or null", "a text or null"
_OPTIONAL_WHOLE, _TEXTS = "a whole number from 1 or null", "a list of texts"
_RULE, _RULES, _CHANCE = "a name or null", "a list of names", "a number from 0 to below 1"
_FLAG, _OBJECT, _FORM = "true, false or null", "an object or null", f"one of {', '.join(get_args(AnswerForm))}"
_FIELDS = {
    "id": _NAME, "skill": _NAME, "domain": _NAME, "family": _LABEL, "split": _LABEL, "rendering": _NAME, "prompt": _TEXT,
    "answer": _FILLED, "trace": _TEXT, "level": _WHOLE, "version": _WHOLE, "answer_form": _FORM, "params": _OBJECT,
    "steps": _TEXTS, "chance": _CHANCE, "rule": _RULE, "rule_aliases": _RULES, "guided": _FLAG, "pair": _OPTIONAL_TEXT,
    "kind": _OPTIONAL_LABEL, "step": _OPTIONAL_WHOLE, "corrected": _OPTIONAL_TEXT,
}  # fmt: skip
"""What every field of a line must be, in words; `_CHECKS` holds the check of each."""


def is_chance(value: object) -> bool:
    """Whether a JSON value is the share of right answers of a random answerer."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _is_name(value: object) -> bool:
    return _is_filled(value) and _is_label(value)


def _is_filled(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_label(value: object) -> bool:
    return isinstance(value, str) and not any(unicodedata.category(char) == "Cc" for char in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return type(value) is int and value >= 1


def _all(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and all(check(part) for part in value)


_CHECKS: dict[str, Callable[[object], bool]] = {
    _NAME: _is_name,
    _LABEL: _is_label,
    _FILLED: _is_filled,
    _TEXT: _is_text,
    _WHOLE: _is_whole,
    _TEXTS: _all(_is_text),
    _RULE: _is_name,
    _RULES: _all(_is_name),
    _CHANCE: is_chance,
    _OPTIONAL_LABEL: _is_label,
    _OPTIONAL_TEXT: _is_text,
    _OPTIONAL_WHOLE: _is_whole,
    _FLAG: lambda value: isinstance(value, bool),
    _OBJECT: lambda value: isinstance(value, Mapping),
    _FORM: lambda value: value in get_args(AnswerForm),
}


def _fits(name: str, value: object) -> bool:
    kind = _FIELDS[name]
    return _CHECKS[kind](value) or (value is None and "null" in kind)


def item_id(family: str, content: str) -> str:
    """Name a question by its family and the hash of its content: `simulation-33fe9449d8df`."""
    return f"{family}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def direct_response(answer: str) -> str:
    """Write the response that gives the answer at once: `ANS 132`."""
    return f"{ANSWER_MARKER} {answer}"


def worked_response(marker: str, steps: str, answer: str) -> str:
    """Write the response that shows its steps first: `THINK 7+5=12;4+8+1=13 ANS 132`."""
    return " ".join(part for part in (marker, steps, ANSWER_MARKER, answer) if part)
