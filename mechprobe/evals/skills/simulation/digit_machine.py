"""A machine with one digit. Level 1 is the lab's skill `simulation`."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

OPERATIONS = "idtn"
N_OPERATIONS = (4, 6, 8, 10, 12, 16)
"""Operations of a run, by level."""
WORDS = {"i": "add 1", "d": "subtract 1", "t": "double it", "n": "subtract it from 9"}


class Run(NamedTuple):
    """A start digit and the operations to apply, in order."""

    start: int
    operations: str


def states(start: int, operations: str) -> list[int]:
    """List the digit after every operation modulo 10: i adds one, d subtracts one, t doubles, n gives 9 minus the digit."""
    result = []
    for operation in operations:
        start = {"i": start + 1, "d": start - 1, "t": start * 2, "n": 9 - start}[operation] % 10
        result.append(start)
    return result


TABLE = {"i": "1234567890", "d": "9012345678", "t": "0246802468", "n": "9876543210"}
"""The digit after an operation, written out for every digit; checks `states`."""
MACHINE = (
    "A machine holds one digit. i adds 1, d subtracts 1, t doubles the digit and n subtracts it from 9, all modulo 10."
)


class DigitMachine(Family):
    """`SIM 7ntnt?`: every state, then the last one."""

    name, skill, domain = "simulation", "simulation", "coding"
    keyword = "SIM"
    answer_form = "integer"
    max_answer_chars = 1
    templates = (
        f"{MACHINE} It starts with {{start}} and runs the program {{operations}}. Which digit does it hold at the end?",
        f"{MACHINE} Run the program {{operations}} from the digit {{start}} and report the final digit.",
        "Start from the digit {start} and, working modulo 10, do the following in order: {spelled}. "
        "What is the digit after the last step?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Operations of the run."""
        return {"operations": N_OPERATIONS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Run:
        """Draw a start digit and the operations."""
        return Run(rng.randrange(10), "".join(rng.choices(OPERATIONS, k=N_OPERATIONS[level - 1])))

    def level_of(self, problem: Run) -> int:
        """From the number of operations."""
        return rung(N_OPERATIONS, len(problem.operations))

    def content(self, problem: Run) -> str:
        """The compact prompt, as in the lab."""
        return self.compact(problem)

    def stream(self, level: int) -> str:
        """The stream of the lab."""
        return f"{self.skill}/symbolic/{level}"

    def compact(self, problem: Run) -> str:
        """Write the question, e.g. `SIM 7ntnt?`."""
        return f"SIM {problem.start}{problem.operations}?"

    def fields(self, problem: Run) -> dict[str, object]:
        """Also the operations in words."""
        return {**problem._asdict(), "spelled": ", ".join(WORDS[operation] for operation in problem.operations)}

    def answer(self, problem: Run) -> str:
        """Run the machine."""
        return str(states(*problem)[-1])

    def verify(self, problem: Run) -> str:
        """Run it by a table."""
        digit = str(problem.start)
        for operation in problem.operations:
            digit = TABLE[operation][int(digit)]
        return digit

    def steps(self, problem: Run) -> tuple[str, ...]:
        """Write the states, e.g. `2`, `4`, `5`, `0`."""
        return tuple(map(str, states(*problem)))

    def scratch(self, problem: Run) -> str:
        """Write them without separators, as in the lab."""
        return "".join(self.steps(problem))

    def guesses(self, problem: Run) -> range:
        """Ten digits."""
        del problem
        return range(10)

    def capacity(self, level: int) -> int:
        """Start digits times operation strings."""
        return 10 * len(OPERATIONS) ** N_OPERATIONS[level - 1]


FAMILY = DigitMachine()
