"""Sums and differences in columns. Level 1 is the lab's skill `calculation`."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family


class Sum(NamedTuple):
    """`a + b` or `a - b`; for a difference, b <= a."""

    a: int
    sign: str
    b: int


class Sums(Family):
    """`CALC 47+85?`: units first, then the other columns with carry or borrow."""

    name, skill, domain = "calculation", "calculation", "mathematics"
    keyword = "CALC"
    answer_form = "integer"
    max_answer_chars = 7
    templates = ("What is {a} {sign} {b}?", "Compute {a} {sign} {b}.", "Work out the value of {a} {sign} {b}.")

    def knobs(self, level: int) -> dict[str, int]:
        """Digits of the longer number."""
        return {"digits": level + 1}

    def draw(self, rng: random.Random, level: int) -> Sum:
        """Draw a with level + 1 digits and b with one digit less or as many, with equal odds."""
        short, long = 10 ** (level - 1), 10**level
        a, sign = rng.randint(long, 10 * long - 1), rng.choice("+-")
        b = rng.randint(short, long - 1) if rng.random() < 0.5 else rng.randint(long, 10 * long - 1)
        return Sum(max(a, b), sign, min(a, b)) if sign == "-" else Sum(a, sign, b)

    def level_of(self, problem: Sum) -> int:
        """From the digits of a."""
        return len(str(problem.a)) - 1

    def content(self, problem: Sum) -> str:
        """The compact prompt, as in the lab."""
        return self.compact(problem)

    def stream(self, level: int) -> str:
        """The stream of the lab."""
        return f"{self.skill}/symbolic/{level}"

    def compact(self, problem: Sum) -> str:
        """Write the question, e.g. `CALC 47+85?`."""
        return f"CALC {problem.a}{problem.sign}{problem.b}?"

    def answer(self, problem: Sum) -> str:
        """Add or subtract."""
        return str(problem.a + problem.b if problem.sign == "+" else problem.a - problem.b)

    def verify(self, problem: Sum) -> str:
        """Add digit by digit; for a difference, add the ten's complement and drop the carry."""
        width = len(str(problem.a))
        first, second = str(problem.a), str(problem.b).rjust(width, "0")
        carry = int(problem.sign == "-")
        if carry:
            second = second.translate(str.maketrans("0123456789", "9876543210"))
        digits = ""
        for x, y in zip(reversed(first), reversed(second), strict=True):
            carry, digit = divmod(int(x) + int(y) + carry, 10)
            digits = str(digit) + digits
        return (str(carry) * (problem.sign == "+") + digits).lstrip("0") or "0"

    def steps(self, problem: Sum) -> tuple[str, ...]:
        """Write the columns, e.g. `7+5=12`, `4+8+1=13`; a borrow shows as `13-7=6`, `8-4-1=3`."""
        return tuple(column for column, _ in columns(problem))

    def guesses(self, problem: Sum) -> range:
        """The results that numbers of these lengths can have."""
        top = 10 ** len(str(problem.a))
        return range(10 ** (len(str(problem.a)) - 1), 2 * top - 1) if problem.sign == "+" else range(top)


def columns(problem: Sum) -> list[tuple[str, int]]:
    """Every worked column with the digit that it leaves, units first."""
    result: list[tuple[str, int]] = []
    a, b, carry = problem.a, problem.b, 0
    while a:
        (a, x), (b, y) = divmod(a, 10), divmod(b, 10)
        suffix = f"{problem.sign}{carry}" if result else ""
        if problem.sign == "+":
            total = x + y + carry
            carry, digit = divmod(total, 10)
            result.append((f"{x}+{y}{suffix}={total}", digit))
            continue
        borrow = int(x - carry < y)
        digit = x + 10 * borrow - y - carry
        result.append((f"{x + 10 * borrow}-{y}{suffix}={digit}", digit))
        carry = borrow
    return result


FAMILY = Sums()
