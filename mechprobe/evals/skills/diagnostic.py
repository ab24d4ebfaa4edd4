"""Diagnostic: find the first wrong step in a claimed run of the machine of `simulation`."""

from __future__ import annotations

import random
from typing import NamedTuple

from mechprobe.evals.skills.simulation import N_STEPS, OPERATIONS, states


class Claim(NamedTuple):
    """Operations, a start digit and the claimed states, of which exactly one results from a wrong step."""

    operations: str
    start: int
    claimed: tuple[int, ...]


class Diagnostic:
    """`DIAG tiit:24561?` -> `THINK 4562 ANS 4`: rerun the machine up to the first difference, and give its step.

    After the wrong step, the claimed run continues correctly from the wrong digit.
    """

    name = "diagnostic"
    own_marker = "TRACE"
    capacity = 10 * len(OPERATIONS) ** N_STEPS * N_STEPS * 9

    def draw(self, rng: random.Random) -> Claim:
        """Draw a run and the step (1-4) that is wrong."""
        operations = "".join(rng.choices(OPERATIONS, k=N_STEPS))
        start, step = rng.randrange(10), rng.randrange(N_STEPS)
        claimed = states(start, operations)
        claimed[step] = rng.choice([digit for digit in range(10) if digit != claimed[step]])
        claimed[step + 1 :] = states(claimed[step], operations[step + 1 :])
        return Claim(operations, start, tuple(claimed))

    def prompt(self, problem: Claim) -> str:
        """Write the question, e.g. `DIAG tiit:24561?` (the start digit, then the claimed states)."""
        return f"DIAG {problem.operations}:{problem.start}{''.join(map(str, problem.claimed))}?"

    def answer(self, problem: Claim) -> str:
        """Give the number of the first wrong step, from 1."""
        return str(len(self.steps(problem)))

    def steps(self, problem: Claim) -> str:
        """Write the true states up to and including the first that differs, e.g. `4562`."""
        true = states(problem.start, problem.operations)
        first = next(i for i, (t, c) in enumerate(zip(true, problem.claimed, strict=True)) if t != c)
        return "".join(map(str, true[: first + 1]))

    def wrong_answer(self, problem: Claim, rng: random.Random) -> str:
        """Draw another step."""
        right = self.answer(problem)
        return rng.choice([step for step in "1234" if step != right])
