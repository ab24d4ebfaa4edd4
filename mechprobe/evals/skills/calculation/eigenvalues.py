"""Eigenvalues of integer matrices with two rows."""

import math
import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, set_text

LARGEST = (5, 10, 20, 40, 70, 120)
"""Bound of the absolute value of the larger eigenvalue, by level; the bound of the level below is exceeded."""
SHEARS = (-3, -2, -1, 1, 2, 3)


class Matrix(NamedTuple):
    """The matrix [[a, b], [c, d]], with two different integer eigenvalues."""

    a: int
    b: int
    c: int
    d: int


class Eigenvalues(Family):
    """`EIGEN 1,2;3,2?`: trace, determinant and the roots of the characteristic polynomial."""

    name, skill, domain = "eigenvalues", "calculation", "mathematics"
    keyword, alias = "EIGEN", "SPECTRUM"
    answer_form = "set"
    max_answer_chars = 9
    ask = "both eigenvalues, separated by a comma,"
    templates = (
        "Find the eigenvalues of the matrix [[{a}, {b}], [{c}, {d}]].",
        "The matrix [[{a}, {b}], [{c}, {d}]] has two different integer eigenvalues. What are they?",
        "Compute the spectrum of the 2x2 matrix with the rows ({a}, {b}) and ({c}, {d}).",
        "For which numbers x is the determinant of [[{a} - x, {b}], [{c}, {d} - x]] zero?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Bound of the eigenvalues."""
        return {"largest": LARGEST[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Matrix:
        """Draw two eigenvalues, and change the basis by two shears, so that all entries are integers."""
        bound = LARGEST[level - 1]
        x, y = rng.sample(range(-bound, bound + 1), 2)
        s, t = rng.choice(SHEARS), rng.choice(SHEARS)
        # diag(x, y) in the basis of the columns of [[1 + st, s], [t, 1]], whose determinant is 1.
        p, q, r, u = 1 + s * t, s, t, 1
        return Matrix(p * u * x - q * r * y, p * q * (y - x), r * u * (x - y), p * u * y - q * r * x)

    def level_of(self, problem: Matrix) -> int:
        """From the larger absolute value of the two eigenvalues."""
        largest = max(map(abs, _roots(problem)))
        return next((i for i, bound in enumerate(LARGEST, 1) if largest <= bound), 0)

    def compact(self, problem: Matrix) -> str:
        """Write the question, e.g. `EIGEN 1,2;3,2?`."""
        a, b, c, d = problem
        return f"EIGEN {a},{b};{c},{d}?"

    def answer(self, problem: Matrix) -> str:
        """Solve the characteristic polynomial."""
        return set_text(sorted(_roots(problem)))

    def verify(self, problem: Matrix) -> str:
        """Try every integer up to the largest row sum, which bounds the eigenvalues."""
        a, b, c, d = problem
        bound = max(abs(a) + abs(b), abs(c) + abs(d))
        return set_text(x for x in range(-bound, bound + 1) if (a - x) * (d - x) == b * c)

    def steps(self, problem: Matrix) -> tuple[str, ...]:
        """Write trace, determinant, discriminant, its root and the eigenvalues."""
        a, b, c, d = problem
        trace, determinant, (x, y) = a + d, a * d - b * c, _roots(problem)
        root = x - y
        discriminant = f"{_signed(trace)}*{_signed(trace)}-4*{_signed(determinant)}={root}*{root}"
        return (
            f"t={a}+{_signed(d)}={trace}", f"d={a}*{_signed(d)}-{_signed(b)}*{_signed(c)}={determinant}",
            discriminant, f"({trace}+{root})/2={x}", f"({trace}-{root})/2={y}",
        )  # fmt: skip

    def guesses(self, problem: Matrix) -> int:
        """Pairs of different integers up to the bound of the level."""
        return math.comb(2 * LARGEST[self.level_of(problem) - 1] + 1, 2)

    def guess(self, problem: Matrix, rng: random.Random) -> str:
        """Draw such a pair."""
        bound = LARGEST[self.level_of(problem) - 1]
        return set_text(sorted(rng.sample(range(-bound, bound + 1), 2)))


def _roots(problem: Matrix) -> tuple[int, int]:
    """The larger and the smaller eigenvalue."""
    a, b, c, d = problem
    root = math.isqrt((a - d) ** 2 + 4 * b * c)
    return (a + d + root) // 2, (a + d - root) // 2


def _signed(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


FAMILY = Eigenvalues()
