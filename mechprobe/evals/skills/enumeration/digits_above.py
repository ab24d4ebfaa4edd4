"""Digits of a row above a bound. Level 1 is the lab's skill `enumeration`."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_DIGITS = (10, 15, 20, 25, 30, 40)
"""Digits of the row, by level."""
BOUNDS = range(2, 8)


class Count(NamedTuple):
    """A bound and a row of digits."""

    bound: int
    digits: str


class DigitsAbove(Family):
    """`ENUM 6:2421948924?`: the digits above the bound, then how many."""

    name, skill, domain = "enumeration", "enumeration", "mathematics"
    keyword = "ENUM"
    answer_form = "integer"
    max_answer_chars = 2
    templates = (
        "How many digits of {digits} are greater than {bound}?",
        "List the digits of {digits} that are greater than {bound}, and count them. How many are there?",
        "In the row of digits {digits}, some digits exceed {bound}. State their number.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Digits of the row."""
        return {"digits": N_DIGITS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Count:
        """Draw a bound in 2-7 and the digits."""
        return Count(rng.choice(BOUNDS), "".join(rng.choices("0123456789", k=N_DIGITS[level - 1])))

    def level_of(self, problem: Count) -> int:
        """From the number of digits."""
        return rung(N_DIGITS, len(problem.digits))

    def content(self, problem: Count) -> str:
        """The compact prompt, as in the lab."""
        return self.compact(problem)

    def stream(self, level: int) -> str:
        """The stream of the lab."""
        return f"{self.skill}/symbolic/{level}"

    def compact(self, problem: Count) -> str:
        """Write the question, e.g. `ENUM 6:2421948924?`."""
        return f"ENUM {problem.bound}:{problem.digits}?"

    def answer(self, problem: Count) -> str:
        """Count the digits above the bound."""
        return str(len(self.steps(problem)))

    def verify(self, problem: Count) -> str:
        """Take away how often every digit up to the bound occurs."""
        return str(len(problem.digits) - sum(problem.digits.count(str(digit)) for digit in range(problem.bound + 1)))

    def steps(self, problem: Count) -> tuple[str, ...]:
        """Write the digits above the bound in order, e.g. `9`, `8`, `9`."""
        return tuple(digit for digit in problem.digits if int(digit) > problem.bound)

    def scratch(self, problem: Count) -> str:
        """Write them without separators, as in the lab."""
        return "".join(self.steps(problem))

    def guesses(self, problem: Count) -> range:
        """From none to all."""
        return range(len(problem.digits) + 1)


FAMILY = DigitsAbove()
