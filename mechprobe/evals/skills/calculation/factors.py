"""Prime factors."""

import math
import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_FACTORS = (2, 3, 4, 5, 6, 7)
"""Prime factors of the number, counted as often as they occur, by level."""
PRIMES = tuple(p for p in range(2, 200) if all(p % d for d in range(2, math.isqrt(p) + 1)))


class Number(NamedTuple):
    """A product of primes below 200."""

    n: int


class Factors(Family):
    """`FACTOR 84?`: divide by the smallest prime factor until 1 is left. This family is held out."""

    name, skill, domain = "prime_factors", "calculation", "mathematics"
    held_out = True
    keyword = "FACTOR"
    answer_form = "list"
    max_answer_chars = 23
    ask = "the prime factors in ascending order, each as often as it occurs, separated by commas,"
    templates = ("Factor {n} into primes.", "Write {n} as a product of prime numbers.")

    def knobs(self, level: int) -> dict[str, int]:
        """Prime factors, and the largest prime."""
        return {"factors": N_FACTORS[level - 1], "largest": PRIMES[-1]}

    def draw(self, rng: random.Random, level: int) -> Number:
        """Multiply primes that are drawn with replacement."""
        return Number(math.prod(rng.choices(PRIMES, k=N_FACTORS[level - 1])))

    def level_of(self, problem: Number) -> int:
        """From the number of factors."""
        factors = _factors(problem.n)
        return rung(N_FACTORS, len(factors)) if factors[-1] <= PRIMES[-1] else 0

    def compact(self, problem: Number) -> str:
        """Write the question, e.g. `FACTOR 84?`."""
        return f"FACTOR {problem.n}?"

    def answer(self, problem: Number) -> str:
        """Divide by the smallest factor again and again."""
        return ",".join(map(str, _factors(problem.n)))

    def verify(self, problem: Number) -> str:
        """Find, for every prime, the highest power that divides the number."""
        powers = {p: max(k for k in range(50) if problem.n % p**k == 0) for p in PRIMES}
        assert math.prod(p**k for p, k in powers.items()) == problem.n
        return ",".join(str(p) for p, k in powers.items() for _ in range(k))

    def steps(self, problem: Number) -> tuple[str, ...]:
        """Write the divisions, e.g. `84/2=42`, `42/2=21`, `21/3=7`, `7/7=1`."""
        steps, n = [], problem.n
        for factor in _factors(n):
            steps.append(f"{n}/{factor}={n // factor}")
            n //= factor
        return tuple(steps)

    def guesses(self, problem: Number) -> int:
        """Selections of as many primes, with repetition."""
        return math.comb(len(PRIMES) + len(_factors(problem.n)) - 1, len(_factors(problem.n)))

    def guess(self, problem: Number, rng: random.Random) -> str:
        """Draw one of them."""
        k = len(_factors(problem.n))
        places = sorted(rng.sample(range(len(PRIMES) + k - 1), k))
        return ",".join(str(PRIMES[place - i]) for i, place in enumerate(places))

    def capacity(self, level: int) -> int | None:
        """Selections with repetition, for two factors."""
        return math.comb(len(PRIMES) + 1, 2) if N_FACTORS[level - 1] == 2 else None


def _factors(n: int) -> list[int]:
    factors, divisor = [], 2
    while divisor * divisor <= n:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    return [*factors, n] if n > 1 else factors


FAMILY = Factors()
