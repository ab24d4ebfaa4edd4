"""A graded question of the benchmark, and the texts that every rendering shares."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

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
    def from_json(cls, line: Mapping[str, Any]) -> "SkillItem":
        """The item of a line that `to_json` wrote."""
        names = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in line.items() if name in names}
        for name in ("steps", "rule_aliases"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


def item_id(family: str, content: str) -> str:
    """Name a question by its family and the hash of its content: `simulation-33fe9449d8df`."""
    return f"{family}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def direct_response(answer: str) -> str:
    """Write the response that gives the answer at once: `ANS 132`."""
    return f"{ANSWER_MARKER} {answer}"


def worked_response(marker: str, steps: str, answer: str) -> str:
    """Write the response that shows its steps first: `THINK 7+5=12;4+8+1=13 ANS 132`."""
    return " ".join(part for part in (marker, steps, ANSWER_MARKER, answer) if part)
