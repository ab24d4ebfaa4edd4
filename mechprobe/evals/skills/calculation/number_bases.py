"""Numbers in other bases."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_DIGITS = (3, 4, 5, 6, 7, 9)
"""Digits of the number, by level."""
BASES = range(2, 10)


class Numeral(NamedTuple):
    """Digits in a base; the first is not 0."""

    base: int
    digits: str


class NumberBases(Family):
    """`BASE 3:2021?`: Horner's rule, digit by digit."""

    name, skill, domain = "number_bases", "calculation", "coding"
    keyword, alias = "BASE", "RADIX"
    answer_form = "integer"
    max_answer_chars = 7
    templates = (
        'What does `int("{digits}", {base})` return in Python?',
        'A program parses the string "{digits}" as an integer in base {base}. Which value, in decimal, does it get?',
        "Convert {digits} from base {base} to base 10.",
        "Written with radix {base}, a number is {digits}. Write it in decimal notation.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Digits of the number."""
        return {"digits": N_DIGITS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Numeral:
        """Draw the base and the digits; a larger base, which has more numbers, comes more often."""
        base = rng.choices(BASES, weights=BASES)[0]
        digits = [rng.randrange(1, base), *(rng.randrange(base) for _ in range(N_DIGITS[level - 1] - 1))]
        return Numeral(base, "".join(map(str, digits)))

    def level_of(self, problem: Numeral) -> int:
        """From the number of digits."""
        return rung(N_DIGITS, len(problem.digits))

    def compact(self, problem: Numeral) -> str:
        """Write the question, e.g. `BASE 3:2021?`."""
        return f"BASE {problem.base}:{problem.digits}?"

    def answer(self, problem: Numeral) -> str:
        """Multiply by the base and add, from the first digit on."""
        value = 0
        for digit in problem.digits:
            value = value * problem.base + int(digit)
        return str(value)

    def verify(self, problem: Numeral) -> str:
        """Add the powers of the base that the digits stand for, from the last digit on."""
        powers = (int(digit) * problem.base**place for place, digit in enumerate(reversed(problem.digits)))
        return str(sum(powers))

    def steps(self, problem: Numeral) -> tuple[str, ...]:
        """Write Horner's rule, e.g. `2*3+0=6`, `6*3+2=20`, `20*3+1=61`."""
        steps, value = [], int(problem.digits[0])
        for digit in problem.digits[1:]:
            after = value * problem.base + int(digit)
            steps.append(f"{value}*{problem.base}+{digit}={after}")
            value = after
        return tuple(steps)

    def guesses(self, problem: Numeral) -> range:
        """All numbers with as many digits in this base."""
        n = len(problem.digits)
        return range(problem.base ** (n - 1), problem.base**n)

    def capacity(self, level: int) -> int | None:
        """All numerals, where they are few."""
        n = N_DIGITS[level - 1]
        return sum((base - 1) * base ** (n - 1) for base in BASES) if n <= 4 else None


FAMILY = NumberBases()
