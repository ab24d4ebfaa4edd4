"""Fact retrieval: recall a known fact, definition, law or rule."""

from mechprobe.evals.skills.fact_retrieval import lab_world

FAMILIES = (lab_world.FAMILY,)
