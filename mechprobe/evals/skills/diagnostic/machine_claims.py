"""Claimed runs of the digit machine with one wrong step. Level 1 is the lab's skill `diagnostic`."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung
from mechprobe.evals.skills.simulation.digit_machine import MACHINE, N_OPERATIONS, OPERATIONS, TABLE, states


class Claim(NamedTuple):
    """A start digit, operations and claimed states; exactly one state is wrong."""

    operations: str
    start: int
    claimed: tuple[int, ...]


class MachineClaims(Family):
    """`DIAG tiit:24561?`: rerun the machine up to the first difference, and give its step.

    After the wrong step, the claimed run continues correctly from the wrong digit. There is no clean control, as in the lab.
    """

    name, skill, domain = "diagnostic", "diagnostic", "coding"
    keyword = "DIAG"
    answer_form = "integer"
    max_answer_chars = 2
    templates = (
        f"{MACHINE} For the program {{operations}} from the digit {{start}}, someone claims these digits after each step: "
        "{listed}. Exactly one step is wrong. Which one, counted from 1?",
        f"{MACHINE} A run of {{operations}} that starts with {{start}} was written down as {{listed}}. One step of it does "
        "not follow from the digit before. Give the number of that step, from 1.",
        f"{MACHINE} Check the log {{listed}} of the program {{operations}} with start digit {{start}}. Find the only "
        "faulty step and state its position (the first step has position 1).",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Operations of the run."""
        return {"operations": N_OPERATIONS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Claim:
        """Draw a run and the step that is wrong."""
        n = N_OPERATIONS[level - 1]
        operations = "".join(rng.choices(OPERATIONS, k=n))
        start, step = rng.randrange(10), rng.randrange(n)
        claimed = states(start, operations)
        claimed[step] = rng.choice([digit for digit in range(10) if digit != claimed[step]])
        claimed[step + 1 :] = states(claimed[step], operations[step + 1 :])
        return Claim(operations, start, tuple(claimed))

    def level_of(self, problem: Claim) -> int:
        """From the number of operations."""
        return rung(N_OPERATIONS, len(problem.operations))

    def content(self, problem: Claim) -> str:
        """The compact prompt, as in the lab."""
        return self.compact(problem)

    def stream(self, level: int) -> str:
        """The stream of the lab."""
        return f"{self.skill}/symbolic/{level}"

    def compact(self, problem: Claim) -> str:
        """Write the question, e.g. `DIAG tiit:24561?` (the start digit, then the claimed states)."""
        return f"DIAG {problem.operations}:{problem.start}{''.join(map(str, problem.claimed))}?"

    def fields(self, problem: Claim) -> dict[str, object]:
        """Also the claimed digits in a list."""
        return {**problem._asdict(), "listed": ", ".join(map(str, problem.claimed))}

    def answer(self, problem: Claim) -> str:
        """Give the number of the first wrong step, from 1."""
        return str(len(self.steps(problem)))

    def verify(self, problem: Claim) -> str:
        """Check every claimed digit against the claimed digit before, by the table."""
        before = (problem.start, *problem.claimed[:-1])
        wrong = [
            step
            for step, (operation, x, y) in enumerate(zip(problem.operations, before, problem.claimed, strict=True), 1)
            if TABLE[operation][x] != str(y)
        ]
        return str(wrong[0]) if len(wrong) == 1 else "not one wrong step"

    def steps(self, problem: Claim) -> tuple[str, ...]:
        """Write the true states up to and including the first that differs, e.g. `4`, `5`, `6`, `2`."""
        true = states(problem.start, problem.operations)
        first = next(i for i, (t, c) in enumerate(zip(true, problem.claimed, strict=True)) if t != c)
        return tuple(map(str, true[: first + 1]))

    def scratch(self, problem: Claim) -> str:
        """Write them without separators, as in the lab."""
        return "".join(self.steps(problem))

    def guesses(self, problem: Claim) -> range:
        """All steps."""
        return range(1, len(problem.operations) + 1)

    def extras(self, problem: Claim) -> dict[str, object]:
        """The wrong step and what it should say."""
        steps = self.steps(problem)
        return {"kind": "injected", "step": len(steps), "corrected": steps[-1]}


FAMILY = MachineClaims()
