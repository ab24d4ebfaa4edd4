"""From a problem to an item: prompt and worked response in a rendering."""

from typing import Any

from mechprobe.errors import InputError
from mechprobe.evals.skills.families import Calculation
from mechprobe.evals.skills.family import Family
from mechprobe.evals.skills.item import SkillItem, worked_response
from mechprobe.evals.skills.registry import CHAT, COMPACT, OFF_POLICY, OWN_MARKERS, SKILLS, marker
from mechprobe.evals.skills.splits import TEST_OUT_TEMPLATE, split_of, template_of


def make_item(family: Family, problem: Any, level: int, rendering: str) -> SkillItem:
    """Render a problem."""
    identity, split = family.id(problem), split_of(family, problem, level)
    render = _chat if rendering == CHAT else _compact
    prompt, trace = render(family, problem, identity, split, rendering)
    return SkillItem(
        id=identity, skill=family.skill, prompt=prompt, answer=family.answer(problem), trace=trace,
        domain=family.domain, family=family.name, level=level, split=split, rendering=rendering,
        version=family.version, answer_form=family.answer_form, params=problem._asdict(),
        steps=family.steps(problem), chance=family.chance(problem), **family.extras(problem),
    )  # fmt: skip


def _chat(family: Family, problem: Any, identity: str, split: str, rendering: str) -> tuple[str, str]:
    del rendering
    prompt = family.chat(problem, template_of(family, identity, split))
    answer = f"The answer is \\boxed{{{family.answer(problem)}}}."
    return prompt, "\n".join(part for part in (family.chat_steps(problem), answer) if part)


def _compact(family: Family, problem: Any, identity: str, split: str, rendering: str) -> tuple[str, str]:
    del identity
    prompt = family.compact(problem)
    if split == TEST_OUT_TEMPLATE and family.alias:
        prompt = family.alias + prompt.removeprefix(family.keyword)
    if rendering == OFF_POLICY:
        skill = SKILLS[family.skill]
        assert isinstance(skill, Calculation), "checked by check_rendering"
        return prompt, skill.off_policy_trace(problem)
    return prompt, worked_response(marker(family.skill, rendering), family.scratch(problem), family.answer(problem))


def check_rendering(family: Family, level: int, rendering: str) -> None:
    """Raise `InputError` if a family has no such rendering."""
    if rendering in (COMPACT, CHAT):
        return
    lab = SKILLS[family.skill]
    if rendering == OFF_POLICY and not isinstance(lab, Calculation):
        raise InputError(f"Rendering {OFF_POLICY} exists only for calculation, not for {family.skill}; use {COMPACT}.")
    if lab.family is not family or (rendering == OFF_POLICY and level != 1):
        where = f"the lab's family '{lab.family.name}'" + (" at level 1" if rendering == OFF_POLICY else "")
        assert rendering in (OWN_MARKERS, OFF_POLICY)
        raise InputError(f"Rendering {rendering} exists only for {where}, not for '{family.name}'; use {COMPACT}.")
