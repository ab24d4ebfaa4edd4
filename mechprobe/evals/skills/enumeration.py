"""Enumeration: count the digits above a bound."""

from __future__ import annotations

import random
from typing import NamedTuple

N_DIGITS = 10
BOUNDS = range(2, 8)


class Count(NamedTuple):
    """A bound and a row of digits."""

    bound: int
    digits: str


class Enumeration:
    """`ENUM 6:2421948924?` -> `THINK 989 ANS 3`: the digits above the bound, then how many."""

    name = "enumeration"
    own_marker = "LIST"
    capacity = len(BOUNDS) * 10**N_DIGITS

    def draw(self, rng: random.Random) -> Count:
        """Draw a bound in 2-7 and ten digits."""
        return Count(rng.choice(BOUNDS), "".join(rng.choices("0123456789", k=N_DIGITS)))

    def prompt(self, problem: Count) -> str:
        """Write the question, e.g. `ENUM 6:2421948924?`."""
        return f"ENUM {problem.bound}:{problem.digits}?"

    def answer(self, problem: Count) -> str:
        """Count the digits above the bound."""
        return str(len(self.steps(problem)))

    def steps(self, problem: Count) -> str:
        """Write the digits above the bound in order, e.g. `989`."""
        return "".join(digit for digit in problem.digits if int(digit) > problem.bound)

    def wrong_answer(self, problem: Count, rng: random.Random) -> str:
        """Draw a count that differs by one or two."""
        right = int(self.answer(problem))
        return str(rng.choice([right + d for d in (-2, -1, 1, 2) if 0 <= right + d <= N_DIGITS]))
