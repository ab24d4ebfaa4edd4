"""The skills by name, and `generate`, which draws graded items from them."""

import random
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any

from mechprobe.errors import InputError
from mechprobe.evals.skills.families import Calculation, Diagnostic, Enumeration, FactRetrieval, Simulation
from mechprobe.evals.skills.item import SHARED_MARKER, Skill, SkillItem, item_id, worked_response

SKILLS: dict[str, Skill] = {
    skill.name: skill for skill in (Calculation(), FactRetrieval(), Simulation(), Enumeration(), Diagnostic())
}
DOMAINS = ("symbolic",)
LEVELS = (1,)
RENDERINGS = ("compact", "compact-own-markers", "compact-off-policy")
"""`compact`: the marker THINK opens every trace. `compact-own-markers`: each skill has its own marker.
`compact-off-policy`: the SO/CHECK style, absent from the lab's pre-training; calculation only."""


def generate(
    skill: str,
    *,
    n: int,
    seed: int,
    domain: str = "symbolic",
    level: int = 1,
    rendering: str = "compact",
    exclude: Collection[str] = (),
) -> list[SkillItem]:
    """Draw n items of one skill with distinct prompts, none of them in `exclude`.

    The prompts depend only on the skill, the domain, the level, the seed and `exclude`, so every rendering has the same
    questions.

    Raises:
        InputError: A skill, domain, level or rendering is unknown, or the skill has fewer than n prompts.
    """
    _check(skill, domain, level, rendering)
    family, excluded = SKILLS[skill], frozenset(exclude)
    rng = random.Random(f"{skill}/{domain}/{level}/{seed}")
    problems: dict[str, Any] = {}
    draws_left = 1000 + 200 * (n + len(excluded))
    while len(problems) < n:
        if n > family.capacity or draws_left == 0:
            raise InputError(
                f"Skill {skill} has {family.capacity} prompts, of which {len(excluded)} are excluded, so {n} cannot be drawn; "
                "ask for fewer."
            )
        draws_left -= 1
        problem = family.draw(rng)
        prompt = family.prompt(problem)
        if prompt not in excluded:
            problems.setdefault(prompt, problem)
    drawn = ((p, family.answer(q), trace(family, q, rendering)) for p, q in problems.items())
    return [SkillItem(item_id(skill, prompt), skill, prompt, answer, worked) for prompt, answer, worked in drawn]


def split(skill: str, sizes: Mapping[str, int], *, seed: int, rendering: str = "compact") -> dict[str, list[SkillItem]]:
    """Draw named sets of items that share no prompt, e.g. `{"eval": 256, "posttrain": 2048}`.

    A set keeps its items when later sets are added or grow.
    """
    items = iter(generate(skill, n=sum(sizes.values()), seed=seed, rendering=rendering))
    return {name: list(islice(items, size)) for name, size in sizes.items()}


def trace(family: Skill, problem: Any, rendering: str) -> str:
    """Write the worked response to a problem in a rendering."""
    if rendering == "compact-off-policy":
        assert isinstance(family, Calculation), "checked by generate: off-policy traces are for calculation"
        return family.off_policy_trace(problem)
    return worked_response(marker(family.name, rendering), family.steps(problem), family.answer(problem))


def marker(skill: str, rendering: str) -> str:
    """Give the word that opens a worked response to a skill in a rendering."""
    return SKILLS[skill].own_marker if rendering == "compact-own-markers" else SHARED_MARKER


def _check(skill: str, domain: str, level: int, rendering: str) -> None:
    """Raise `InputError` for an unknown choice; the message lists the known ones."""
    choices = {"skill": (skill, SKILLS), "domain": (domain, DOMAINS), "level": (level, LEVELS)}
    for kind, (value, values) in (choices | {"rendering": (rendering, RENDERINGS)}).items():
        if value not in values:
            raise InputError(f"Unknown {kind} {value!r}; choose one of: {', '.join(map(str, values))}.")
    if rendering == "compact-off-policy" and skill != "calculation":
        raise InputError(f"Rendering compact-off-policy exists only for calculation, not for {skill}; use compact.")
