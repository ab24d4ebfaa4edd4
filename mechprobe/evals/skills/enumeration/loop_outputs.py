"""The different values that a loop prints."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung, set_text
from mechprobe.evals.skills.programs import WORDS, Program, compact_text, python_text, run_on_stack

ROUNDS = (3, 4, 5, 6, 8, 10)
MODULI = ((5, 9), (5, 12), (6, 15), (7, 20), (9, 30), (11, 40))
"""Rounds of the loop and range of the modulus, by level."""


class Loop(NamedTuple):
    """`for i in range(start, stop)`: print `(factor * i + offset) % modulus`."""

    start: int
    stop: int
    factor: int
    offset: int
    modulus: int

    @property
    def program(self) -> Program:
        """The program."""
        value = ("%", ("+", ("*", "i", self.factor), self.offset), self.modulus)
        return (("for", "i", self.start, self.stop, (("out", value),)),)


class LoopOutputs(Family):
    """`PRINTED FOR i=2:5[OUT (i*3+1)%7]?`: `{0,3,6}`."""

    name, skill, domain = "loop_outputs", "enumeration", "coding"
    keyword, alias, words = "PRINTED", "SHOWN", WORDS
    answer_form = "set"
    max_answer_chars = 32
    templates = (
        "List the different values that this Python program prints.\n{code}",
        "Which values does the following Python program print? Name each value once.\n{code}",
        "{code}\nGive the set of all values in the output of the Python program above.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Rounds and range of the modulus."""
        low, high = MODULI[level - 1]
        return {"rounds": ROUNDS[level - 1], "low": low, "high": high}

    def draw(self, rng: random.Random, level: int) -> Loop:
        """Draw the numbers of the loop."""
        start = rng.randint(0, 9)
        return Loop(
            start, start + ROUNDS[level - 1], rng.randint(2, 9), rng.randint(0, 9), rng.randint(*MODULI[level - 1])
        )

    def level_of(self, problem: Loop) -> int:
        """From the rounds."""
        return rung(ROUNDS, problem.stop - problem.start)

    def compact(self, problem: Loop) -> str:
        """Write the program in one line."""
        return f"PRINTED {compact_text(problem.program)}?"

    def fields(self, problem: Loop) -> dict[str, object]:
        """The program as Python text."""
        return {"code": python_text(problem.program)}

    def _printed(self, problem: Loop) -> list[int]:
        """One value a round, each by adding the factor to the one before."""
        values = [(problem.factor * problem.start + problem.offset) % problem.modulus]
        while len(values) < problem.stop - problem.start:
            values.append((values[-1] + problem.factor) % problem.modulus)
        return values

    def answer(self, problem: Loop) -> str:
        """Collect the values."""
        return set_text(sorted(set(self._printed(problem))))

    def verify(self, problem: Loop) -> str:
        """Run the program on the stack machine."""
        return set_text(sorted(set(run_on_stack(problem.program).printed)))

    def steps(self, problem: Loop) -> tuple[str, ...]:
        """Write every printed value, e.g. `0`, `3`, `6`."""
        return tuple(map(str, self._printed(problem)))

    def guesses(self, problem: Loop) -> int:
        """Number of sets of remainders, the empty one left out."""
        return 2**problem.modulus - 1

    def guess(self, problem: Loop, rng: random.Random) -> str:
        """Draw such a set."""
        bits = rng.randint(1, 2**problem.modulus - 1)
        return set_text(value for value in range(problem.modulus) if bits >> value & 1)


FAMILY = LoopOutputs()
