"""Simulation: follow a process step by step to predict its course."""

from mechprobe.evals.skills.simulation import (
    bouncing,
    cellular_automaton,
    collisions,
    digit_machine,
    handover,
    program_trace,
    recurrence,
    rooms,
)

FAMILIES = (
    digit_machine.FAMILY,
    recurrence.FAMILY,
    cellular_automaton.FAMILY,
    bouncing.FAMILY,
    collisions.FAMILY,
    program_trace.FAMILY,
    handover.FAMILY,
    rooms.FAMILY,
)
