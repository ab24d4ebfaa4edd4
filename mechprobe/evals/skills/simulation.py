"""Simulation: run a small machine on one digit."""

from __future__ import annotations

import random
from typing import NamedTuple

OPERATIONS = "idtn"
N_STEPS = 4


class Run(NamedTuple):
    """A start digit and the operations to apply, in order."""

    start: int
    operations: str


def apply(operation: str, digit: int) -> int:
    """Apply one operation modulo 10: i adds one, d subtracts one, t doubles, n gives 9 minus the digit.

    Example:
        >>> [apply(operation, 7) for operation in "idtn"]
        [8, 6, 4, 2]
    """
    return {"i": digit + 1, "d": digit - 1, "t": digit * 2, "n": 9 - digit}[operation] % 10


def states(start: int, operations: str) -> list[int]:
    """List the digit after every operation.

    Example:
        >>> states(7, "ntnt")
        [2, 4, 5, 0]
    """
    result = []
    for operation in operations:
        start = apply(operation, start)
        result.append(start)
    return result


class Simulation:
    """`SIM 7ntnt?` -> `THINK 2450 ANS 0`: every state, then the last one."""

    name = "simulation"
    own_marker = "RUN"
    capacity = 10 * len(OPERATIONS) ** N_STEPS

    def draw(self, rng: random.Random) -> Run:
        """Draw a start digit and four operations."""
        return Run(rng.randrange(10), "".join(rng.choices(OPERATIONS, k=N_STEPS)))

    def prompt(self, problem: Run) -> str:
        """Write the question, e.g. `SIM 7ntnt?`."""
        return f"SIM {problem.start}{problem.operations}?"

    def answer(self, problem: Run) -> str:
        """Run the machine."""
        return str(states(*problem)[-1])

    def steps(self, problem: Run) -> str:
        """Write the states, e.g. `2450`."""
        return "".join(map(str, states(*problem)))

    def wrong_answer(self, problem: Run, rng: random.Random) -> str:
        """Draw another digit."""
        right = self.answer(problem)
        return rng.choice([digit for digit in "0123456789" if digit != right])
