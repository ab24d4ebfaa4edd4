"""The families of the benchmark by name and by cell, and the lab's skills by name."""

from mechprobe.errors import InputError
from mechprobe.evals.skills import calculation, diagnostic, enumeration, fact_retrieval, simulation
from mechprobe.evals.skills.families import Calculation, Diagnostic, Enumeration, FactRetrieval, LabSkill, Simulation
from mechprobe.evals.skills.family import Family
from mechprobe.evals.skills.item import SHARED_MARKER

SKILLS: dict[str, LabSkill] = {
    skill.name: skill for skill in (Calculation(), FactRetrieval(), Simulation(), Enumeration(), Diagnostic())
}
"""The names of the skills, each with the skill of the lab. Their order is part of the lab's bytes."""
DOMAINS = ("mathematics", "physics", "coding", "non_reasoning_qa")
LAB = "symbolic"
"""In place of a domain: the family of the lab, whichever its domain is."""
COMPACT, CHAT = "compact", "chat"
OWN_MARKERS, OFF_POLICY = "compact-own-markers", "compact-off-policy"
RENDERINGS = (COMPACT, CHAT, OWN_MARKERS, OFF_POLICY)
"""`compact`: closed vocabulary; the marker THINK opens every trace. `chat`: natural language with the answer in a box.
`compact-own-markers` (families of the lab only): each skill has its own marker. `compact-off-policy` (sums of level 1 only):
the SO/CHECK style, absent from the lab's pre-training."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for room in (calculation, enumeration, simulation, fact_retrieval, diagnostic)
    for family in room.FAMILIES
}
"""All families of the benchmark by name."""


def families(skill: str | None = None, domain: str | None = None, *, held_out: bool | None = None) -> list[Family]:
    """The families of a skill and a domain, in the order of registration; None takes all."""
    return [
        family
        for family in FAMILIES.values()
        if skill in (None, family.skill) and domain in (None, family.domain) and held_out in (None, family.held_out)
    ]


def family_named(name: str) -> Family:
    """The family of a name; `InputError` if there is none."""
    check_choice("family", name, FAMILIES)
    return FAMILIES[name]


def family_of(identity: str) -> Family | None:
    """The family that made the id of an item; None for an id of another origin."""
    return FAMILIES.get(identity.rpartition("-")[0])


def marker(skill: str, rendering: str) -> str:
    """Give the word that opens a worked response to a skill in a rendering."""
    return SKILLS[skill].own_marker if rendering == OWN_MARKERS else SHARED_MARKER


def check_choice(
    kind: str, value: object, known: "dict[str, Family] | dict[str, LabSkill] | tuple[object, ...]"
) -> None:
    """Raise `InputError` for an unknown choice; the message lists the known ones."""
    if value not in known:
        raise InputError(f"Unknown {kind} {value!r}; choose one of: {', '.join(map(str, known))}.")
