"""Worked chains of calculations modulo 7; a held-out family."""

import random

from mechprobe.evals.skills.diagnostic.worked import WorkedFamily
from mechprobe.evals.skills.diagnostic.worked_sums import SPELLED


class WorkedResidues(WorkedFamily):
    """`SEVENS 5+4*3:5+4=2;2*3=6?`: `none`."""

    name, domain = "worked_residues", "mathematics"
    held_out = True
    keyword = "SEVENS"
    n_steps = (2, 3, 4, 5, 6, 7)
    largest = (6,) * 6
    templates = (
        "Calculate modulo 7. Start with {start} and do this in order: {statement}. Someone solved it in these steps:\n{solution}\nAt "
        "most one step is wrong; the steps after it build on it. {verdict}",
        "Check this calculation modulo 7: take {start}, then {statement}, each time with the last remainder.\n{solution}\nNo more than "
        "one step contains an error. {verdict}",
        "Problem, in the integers modulo 7: from {start}, {statement}, in this order. Claimed solution:\n{solution}\nFind the step that "
        "does not agree with the problem or with the steps before it, if there is one. {verdict}",
    )

    def operation(self, rng: random.Random, value: int) -> str:
        """Draw a sign and a digit from 2 to 9."""
        del value
        return f"{rng.choice('+-*')}{rng.randint(2, 9)}"

    def result(self, value: int, operation: str) -> int:
        """Calculate and take the remainder."""
        sign, number = operation[0], int(operation[1:])
        return (value + number if sign == "+" else value - number if sign == "-" else value * number) % 7

    def check(self, value: int, operation: str) -> int:
        """Walk around a circle of seven places."""
        sign, number = operation[0], int(operation[1:])
        place, ahead = (0, number * value) if sign == "*" else (value, number)
        for _ in range(ahead):
            place = (6 if place == 0 else place - 1) if sign == "-" else (0 if place == 6 else place + 1)
        return place

    def spelled(self, operation: str) -> str:
        """E.g. `add 5`."""
        return SPELLED[operation[0]].format(operation[1:])


FAMILY = WorkedResidues()
