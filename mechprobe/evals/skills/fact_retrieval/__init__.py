"""Fact retrieval: recall a known fact, definition, law or rule."""

from mechprobe.evals.skills.fact_retrieval import general_facts, lab_world, laws, semantics, theorems

FAMILIES = (lab_world.FAMILY, theorems.FAMILY, laws.FAMILY, semantics.FAMILY, general_facts.FAMILY)
