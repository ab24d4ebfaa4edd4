"""Simulation: follow a process step by step to predict its course."""

from mechprobe.evals.skills.simulation import digit_machine

FAMILIES = (digit_machine.FAMILY,)
