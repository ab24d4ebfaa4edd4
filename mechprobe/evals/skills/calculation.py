"""Calculation: add or subtract two numbers column by column."""

from __future__ import annotations

import random
from typing import NamedTuple

from mechprobe.evals.skills.item import ANSWER_MARKER


class Sum(NamedTuple):
    """`a + b` or `a - b` with a in 10-99, b in 1-99 and, for a difference, b <= a."""

    a: int
    sign: str
    b: int


class Calculation:
    """`CALC 47+85?` -> `THINK 7+5=12;4+8+1=13 ANS 132`: units first, then tens with the carry."""

    name = "calculation"
    own_marker = "THINK"
    capacity = 90 * 99 + sum(range(10, 100))

    def draw(self, rng: random.Random) -> Sum:
        """Draw a in 10-99 and b in 1-9 or 10-99 with equal odds; a difference is never negative."""
        a, sign = rng.randint(10, 99), rng.choice("+-")
        b = rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(10, 99)
        return Sum(max(a, b), sign, min(a, b)) if sign == "-" else Sum(a, sign, b)

    def prompt(self, problem: Sum) -> str:
        """Write the question, e.g. `CALC 47+85?`."""
        return f"CALC {problem.a}{problem.sign}{problem.b}?"

    def answer(self, problem: Sum) -> str:
        """Add or subtract."""
        return str(problem.a + problem.b if problem.sign == "+" else problem.a - problem.b)

    def steps(self, problem: Sum) -> str:
        """Write the two columns, e.g. `7+5=12;4+8+1=13`; a borrow shows as `13-7=6;8-4-1=3`."""
        units, tens, _ = _columns(problem)
        return f"{units};{tens}"

    def off_policy_trace(self, problem: Sum) -> str:
        """Write the steps in a style that is absent from the base model's training data.

        Each column states the digit it leaves (`>`), and the inverse operation checks the result:
        `SO 4+2=6>6;6+0+0=6>6;CHECK 66-2=64;ANS 66`.
        """
        units, tens, digit = _columns(problem)
        result = self.answer(problem)
        inverse = "-" if problem.sign == "+" else "+"
        return (
            f"SO {units}>{digit};{tens}>{tens.rpartition('=')[2]};"
            f"CHECK {result}{inverse}{problem.b}={problem.a};{ANSWER_MARKER} {result}"
        )

    def wrong_answer(self, problem: Sum, rng: random.Random) -> str:
        """Draw an answer that differs by one, two, ten or eleven."""
        right = int(self.answer(problem))
        misses = [right + d for d in (-11, -10, -2, -1, 1, 2, 10, 11) if right + d >= 0]
        return str(rng.choice(misses))


def _columns(problem: Sum) -> tuple[str, str, int]:
    """The worked unit column, the worked tens column, and the unit digit of the result."""
    tens_a, units_a = divmod(problem.a, 10)
    tens_b, units_b = divmod(problem.b, 10)
    if problem.sign == "+":
        total = units_a + units_b
        carry = total // 10
        units = f"{units_a}+{units_b}={total}"
        tens = f"{tens_a}+{tens_b}+{carry}={tens_a + tens_b + carry}"
        return units, tens, total % 10
    borrow = int(units_a < units_b)
    top = units_a + 10 * borrow
    units = f"{top}-{units_b}={top - units_b}"
    tens = f"{tens_a}-{tens_b}-{borrow}={tens_a - tens_b - borrow}"
    return units, tens, top - units_b
