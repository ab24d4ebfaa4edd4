"""Skill, domain, family, level and split of samples, from their ids and from the lines of a tasks file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mechprobe.errors import InputError
from mechprobe.evals.scorers.final_answer import form_of, read_diagnosis
from mechprobe.evals.skills.item import SkillItem
from mechprobe.evals.skills.registry import DOMAINS, SKILLS, family_of
from mechprobe.records import Sample, read_jsonl


class SkillLabels(NamedTuple):
    """The labels of one sample. ``level`` is None and ``split`` empty where only the id is known."""

    skill: str
    domain: str
    family: str
    level: int | None
    split: str


def labels(source: Path | str | Iterable[Sample | SkillItem]) -> dict[str, SkillLabels]:
    """The labels of samples by their ids. A sample that no family made and whose line names no cell has no entry.

    The id names the family, which is of one skill and one domain. Level and split stand in the lines of a tasks file. Lines
    without them with ids of the lab's families are of level 1: the lab has no others. A line with another id may name skill,
    domain and family itself.

    Args:
        source: A JSON-lines file of tasks or prompts, or samples.

    Raises:
        InputError: A line contradicts the registered family of its id, or names an unknown cell.
    """
    if isinstance(source, Path | str):
        path = Path(source)
        found = ((line.get("id"), line, f"{path}:{number}") for number, line in read_jsonl(path))
    else:
        found = ((sample.id, _fields(sample), f"sample '{sample.id}'") for sample in source)
    result = {str(identity): _labels(str(identity), fields, where) for identity, fields, where in found}
    return {identity: label for identity, label in result.items() if label is not None}


def _fields(sample: Sample | SkillItem) -> Mapping[str, Any]:
    return sample.to_json() if isinstance(sample, SkillItem) else {}


def _labels(identity: str, line: Mapping[str, Any], where: str) -> SkillLabels | None:
    family = family_of(identity)
    if family is None and not {"skill", "domain", "family"} <= line.keys():
        return None
    if family is None:  # items of other makers, such as reasoning-gym, say all of it themselves
        own = (line["skill"], line["domain"], line["family"])
        if own[0] not in [*SKILLS] or own[1] not in DOMAINS or not isinstance(own[2], str):
            raise InputError(
                f"{where}: skill {own[0]!r} and domain {own[1]!r} are no cell of the benchmark; skills: {', '.join(SKILLS)}; "
                f"domains: {', '.join(DOMAINS)}."
            )
    else:
        own = (family.skill, family.domain, family.name)
    for name, right in zip(("skill", "domain", "family"), own, strict=True):
        if line.get(name, right) != right:
            raise InputError(f"{where}: {name} is {line[name]!r}, but the id '{identity}' is of {right}; correct it.")
    of_lab = family is not None and SKILLS[family.skill].family is family
    level, split = line.get("level", 1 if of_lab else None), line.get("split", "")
    if (level is not None and type(level) is not int) or not isinstance(split, str):
        raise InputError(f"{where}: 'level' must be a whole number and 'split' a text; correct them.")
    return SkillLabels(*own, level, split)


def read_item(line: Mapping[str, Any], where: str) -> SkillItem:
    """The skill item of a line of a tasks file.

    Raises:
        InputError: A field is missing or wrong, or two fields contradict each other; the message begins with ``where``.
    """
    item = SkillItem.from_json(line, where)
    if problem := _contradiction(item):
        raise InputError(f"{where}: {problem}; correct it.")
    return item


def _contradiction(item: SkillItem) -> str | None:
    """Why an item cannot be, as a clause: an unknown cell, another family than that of its id, an answer that is no diagnosis."""
    for kind, value, known in (("skill", item.skill, (*SKILLS,)), ("domain", item.domain, DOMAINS)):
        if value not in known:
            return f"the {kind} {value!r} is unknown; known are {', '.join(known)}"
    family = family_of(item.id)
    for name in ("skill", "domain", "family") if family is not None else ():
        right, stated = getattr(family, "name" if name == "family" else name), getattr(item, name)
        if stated not in (right, ""):
            return f"{name} is {stated!r}, but the id '{item.id}' is of {right}"
    diagnostic, asked = item.skill == "diagnostic", item.answer_form == "diagnosis"
    if asked and not diagnostic:
        return f"the answer_form is 'diagnosis', but the skill is {item.skill}"
    if diagnostic and (read_diagnosis(item.answer) is None or (asked and form_of(item.answer) != "diagnosis")):
        return f"the answer {item.answer[:80]!r} is no diagnosis such as '4:56' or 'none'"
    return None
