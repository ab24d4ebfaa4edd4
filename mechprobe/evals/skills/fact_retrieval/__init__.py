"""Fact retrieval: recall a known fact, definition, law or rule."""

import functools

from mechprobe.evals.skills.fact_retrieval import general_facts, lab_world, laws, orders, semantics, theorems
from mechprobe.evals.skills.fact_retrieval.facts import Facts

FACTS: tuple[Facts, ...] = (theorems.FAMILY, laws.FAMILY, semantics.FAMILY, general_facts.FAMILY, orders.FAMILY)
FAMILIES = (lab_world.FAMILY, *FACTS)


@functools.cache
def known_rules(domain: str) -> dict[str, tuple[str, ...]]:
    """The rules of all fact families of a domain with their aliases, among which a response must name the right one."""
    own = (rule for family in FACTS if family.domain == domain for rule in family.rules)
    return {rule.name: (*rule.aliases, rule.word) for rule in own}
