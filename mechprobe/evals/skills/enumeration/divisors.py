"""All divisors of a number above a bound."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, set_text

BANDS = ((12, 100), (101, 200), (201, 400), (401, 700), (701, 1100), (1101, 2000))
"""Range of the number, by level."""
LONGEST = 40
"""Characters of the longest answer; numbers with more divisors are left out."""


class Divided(NamedTuple):
    """A number, and the bound that its divisors must exceed."""

    number: int
    bound: int


class Divisors(Family):
    """`DIVISORS 36>5?`: `{6,9,12,18,36}`."""

    name, skill, domain = "divisors", "enumeration", "mathematics"
    keyword, alias = "DIVISORS", "FACTORS"
    answer_form = "set"
    max_answer_chars = LONGEST
    templates = (
        "List all positive divisors of {number} that are greater than {bound}.",
        "Which positive integers greater than {bound} divide {number}? Name every one.",
        "Find the full set of positive divisors of {number} above {bound}.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Range of the number."""
        low, high = BANDS[level - 1]
        return {"low": low, "high": high}

    def draw(self, rng: random.Random, level: int) -> Divided:
        """Draw a number and a bound."""
        return Divided(rng.randint(*BANDS[level - 1]), rng.randint(1, 40))

    def level_of(self, problem: Divided) -> int:
        """From the range of the number; 0 where the answer is too long or the bound leaves only the number itself."""
        answer = self.answer(problem)
        if len(answer) > LONGEST or "," not in answer:
            return 0
        return next((level for level, (low, high) in enumerate(BANDS, 1) if low <= problem.number <= high), 0)

    def compact(self, problem: Divided) -> str:
        """Write the question, e.g. `DIVISORS 36>5?`."""
        return f"DIVISORS {problem.number}>{problem.bound}?"

    def answer(self, problem: Divided) -> str:
        """Every pair of factors gives up to two divisors."""
        small = [d for d in range(1, int(problem.number**0.5) + 1) if problem.number % d == 0]
        found = {*small, *(problem.number // d for d in small)}
        return set_text(d for d in sorted(found) if d > problem.bound)

    def verify(self, problem: Divided) -> str:
        """Try every number above the bound."""
        return set_text(d for d in range(problem.bound + 1, problem.number + 1) if problem.number % d == 0)

    def steps(self, problem: Divided) -> tuple[str, ...]:
        """Write every pair of factors, e.g. `1*36`, `2*18`."""
        n = problem.number
        return tuple(f"{d}*{n // d}" for d in range(1, int(n**0.5) + 1) if n % d == 0)

    def work(self, problem: Divided) -> int:
        """Trial divisions up to the square root."""
        return int(problem.number**0.5)

    def guesses(self, problem: Divided) -> int:
        """Number of sets that hold the number itself and any from the bound to its half."""
        return 2 ** len(self._candidates(problem))

    def _candidates(self, problem: Divided) -> range:
        return range(problem.bound + 1, problem.number // 2 + 1)

    def guess(self, problem: Divided, rng: random.Random) -> str:
        """Draw such a set."""
        return set_text([*(d for d in self._candidates(problem) if rng.random() < 0.5), problem.number])


FAMILY = Divisors()
