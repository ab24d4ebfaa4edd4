"""Greatest common divisors."""

import functools
import math
import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_DIGITS = (2, 3, 4, 5, 6, 7)
"""Digits of both numbers, by level."""


class Pair(NamedTuple):
    """Two numbers of as many digits with a common divisor above 1; a > b."""

    a: int
    b: int


class Gcd(Family):
    """`GCD 84,60?`: Euclid's divisions."""

    name, skill, domain = "gcd", "calculation", "mathematics"
    keyword, alias = "GCD", "HCF"
    answer_form = "integer"
    max_answer_chars = 6
    templates = (
        "What is the greatest common divisor of {a} and {b}?",
        "Compute gcd({a}, {b}).",
        "Find the largest integer that divides both {a} and {b}.",
        "Determine the highest common factor of the numbers {a} and {b}.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Digits of both numbers."""
        return {"digits": N_DIGITS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Pair:
        """Draw a divisor below 50, 500 or 5,000, which is all there are for two digits, and two multiples of it."""
        n_digits = N_DIGITS[level - 1]
        low, high = 10 ** (n_digits - 1), 10**n_digits - 1
        divisor = rng.randint(2, 5 * 10 ** (n_digits // 2) - 1)
        x, y = (divisor * rng.randint(-(-low // divisor), high // divisor) for _ in range(2))
        return Pair(max(x, y), min(x, y))

    def level_of(self, problem: Pair) -> int:
        """From the digits, which both numbers must have."""
        a, b = problem
        valid = len(str(a)) == len(str(b)) and a > b and math.gcd(a, b) > 1
        return rung(N_DIGITS, len(str(a))) if valid else 0

    def compact(self, problem: Pair) -> str:
        """Write the question, e.g. `GCD 84,60?`."""
        return f"GCD {problem.a},{problem.b}?"

    def answer(self, problem: Pair) -> str:
        """Take the last divisor of Euclid's algorithm."""
        return str(_divisions(problem)[-1][2])

    def verify(self, problem: Pair) -> str:
        """Take the largest divisor of b that divides a."""
        return str(max(d for d in divisors(problem.b) if problem.a % d == 0))

    def steps(self, problem: Pair) -> tuple[str, ...]:
        """Write the divisions, e.g. `84-1*60=24`, `60-2*24=12`, `24-2*12=0`."""
        return tuple(f"{a}-{quotient}*{b}={rest}" for a, quotient, b, rest in _divisions(problem))

    def guesses(self, problem: Pair) -> tuple[str, ...]:
        """The divisors of the smaller number."""
        return tuple(map(str, divisors(problem.b)))

    def capacity(self, level: int) -> int | None:
        """Counted for two digits."""
        return _pairs_of_two_digits() if N_DIGITS[level - 1] == 2 else None


def _divisions(problem: Pair) -> list[tuple[int, int, int, int]]:
    """Dividend, quotient, divisor and rest of every division of Euclid's algorithm."""
    result, (a, b) = [], problem
    while b:
        result.append((a, a // b, b, a % b))
        a, b = b, a % b
    return result


def divisors(n: int) -> list[int]:
    """All divisors of a number in ascending order, by trial division."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


@functools.cache
def _pairs_of_two_digits() -> int:
    return sum(math.gcd(a, b) > 1 for a in range(10, 100) for b in range(10, a))


FAMILY = Gcd()
