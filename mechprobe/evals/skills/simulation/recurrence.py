"""Sequences in which every number follows from the two before."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_STEPS = (3, 5, 7, 9, 12, 16)
"""Numbers to compute, by level."""
MODULI, FACTORS = range(7, 51), range(1, 6)


class Sequence(NamedTuple):
    """Two first numbers; the next one is p times the last plus q times the one before plus r, modulo m."""

    first: int
    second: int
    p: int
    q: int
    r: int
    m: int
    n: int


class Recurrence(Family):
    """`SEQ 3,5;2,1,4%17;7?`: every number up to the one that is asked for."""

    name, skill, domain = "recurrence", "simulation", "mathematics"
    keyword, alias = "SEQ", "TERM"
    answer_form = "integer"
    max_answer_chars = 2
    templates = (
        "A sequence begins with {first}, {second}. Each further term is {p} times the last term plus {q} times the term "
        "before it plus {r}, reduced modulo {m}. What is term number {index}?",
        "Let x_1 = {first}, x_2 = {second} and x_k = ({p} x_(k-1) + {q} x_(k-2) + {r}) mod {m}. Compute x_{index}.",
        "Two registers A = {first} and B = {second} are updated {n} times: the new B is ({p} B + {q} A + {r}) mod {m}, and "
        "the new A is the old B. What does B hold at the end?",
        "Start with the pair ({first}, {second}). Repeat {n} times: replace the pair (a, b) by "
        "(b, ({q} a + {p} b + {r}) mod {m}). What is the second number of the final pair?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Numbers to compute."""
        return {"steps": N_STEPS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Sequence:
        """Draw the rule and the first numbers."""
        m, p, q = rng.choice(MODULI), rng.choice(FACTORS), rng.choice(FACTORS)
        return Sequence(rng.randrange(m), rng.randrange(m), p, q, rng.randrange(min(m, 10)), m, N_STEPS[level - 1])

    def level_of(self, problem: Sequence) -> int:
        """From the numbers to compute."""
        return rung(N_STEPS, problem.n)

    def compact(self, problem: Sequence) -> str:
        """Write the question, e.g. `SEQ 3,5;2,1,4%17;7?`."""
        first, second, p, q, r, m, n = problem
        return f"SEQ {first},{second};{p},{q},{r}%{m};{n}?"

    def fields(self, problem: Sequence) -> dict[str, object]:
        """Also the index of the number that is asked for."""
        return {**problem._asdict(), "index": problem.n + 2}

    def answer(self, problem: Sequence) -> str:
        """Compute number after number."""
        return self.steps(problem)[-1]

    def verify(self, problem: Sequence) -> str:
        """Raise the matrix of the rule to the power n."""
        _, _, p, q, r, m, n = problem
        power = [[int(i == j) for j in range(3)] for i in range(3)]
        base = [[p, q, r], [1, 0, 0], [0, 0, 1]]
        while n:
            if n % 2:
                power = _times(power, base, m)
            base, n = _times(base, base, m), n // 2
        a, b, c = power[0]
        return str((a * problem.second + b * problem.first + c) % m)

    def steps(self, problem: Sequence) -> tuple[str, ...]:
        """Write the numbers, e.g. `0`, `9`, `5`."""
        before, last, p, q, r, m, n = problem
        numbers = []
        for _ in range(n):
            before, last = last, (p * last + q * before + r) % m
            numbers.append(str(last))
        return tuple(numbers)

    def guesses(self, problem: Sequence) -> range:
        """All remainders."""
        return range(problem.m)


def _times(x: list[list[int]], y: list[list[int]], m: int) -> list[list[int]]:
    return [[sum(x[i][k] * y[k][j] for k in range(3)) % m for j in range(3)] for i in range(3)]


FAMILY = Recurrence()
