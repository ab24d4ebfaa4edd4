"""Subsets of a given size with a given sum."""

import functools
import itertools
import math
import random
from collections import Counter
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_NUMBERS = (4, 5, 6, 7, 8, 9)
SIZES = (2, 2, 3, 3, 4, 4)
LARGEST = (14, 14, 14, 14, 16, 18)
MOST = (2, 2, 3, 4, 6, 9)
"""How many numbers, how many of them are chosen, the largest number, and the largest answer that is drawn, by level."""


class Chosen(NamedTuple):
    """Ascending numbers, how many are chosen, and what they must add up to."""

    numbers: tuple[int, ...]
    size: int
    total: int


class SubsetSums(Family):
    """`CHOOSE 2:1,4,5,8=9?`: two subsets of two numbers add up to 9."""

    name, skill, domain = "subset_sums", "enumeration", "mathematics"
    version = 2
    keyword, alias = "CHOOSE", "SELECT"
    answer_form = "integer"
    max_answer_chars = 3
    templates = (
        "How many subsets of {size} elements of the set {{{listed}}} have the sum {total}?",
        "Choose {size} different numbers from {listed} so that they add up to {total}. In how many ways is that possible, "
        "if the order does not count?",
        "Count the {size}-element subsets of {{{listed}}} whose elements add up to {total}.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """How many numbers, how many are chosen, and the largest number."""
        return {"numbers": N_NUMBERS[level - 1], "size": SIZES[level - 1], "largest": LARGEST[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Chosen:
        """Draw the answer, then numbers that have such a sum, and one of their sums with that answer.

        So no answer is much more frequent than others. A sum with the answer 0 is within the range of the sums.
        """
        wanted, size = rng.randint(0, MOST[level - 1]), SIZES[level - 1]
        while True:
            numbers = sorted(rng.sample(range(1, LARGEST[level - 1] + 1), N_NUMBERS[level - 1]))
            found = Counter(map(sum, itertools.combinations(numbers, size)))
            totals = [total for total in range(min(found), max(found) + 1) if found[total] == wanted]
            if totals:
                return Chosen(tuple(numbers), size, rng.choice(totals))

    def level_of(self, problem: Chosen) -> int:
        """From how many numbers there are."""
        return rung(N_NUMBERS, len(problem.numbers))

    def compact(self, problem: Chosen) -> str:
        """Write the question, e.g. `CHOOSE 2:1,4,5,8=9?`."""
        return f"CHOOSE {problem.size}:{','.join(map(str, problem.numbers))}={problem.total}?"

    def fields(self, problem: Chosen) -> dict[str, object]:
        """Also the numbers in a list."""
        return {**problem._asdict(), "listed": ", ".join(map(str, problem.numbers))}

    def answer(self, problem: Chosen) -> str:
        """Try every subset."""
        return str(len(self._found(problem)))

    def _found(self, problem: Chosen) -> list[tuple[int, ...]]:
        return [one for one in itertools.combinations(problem.numbers, problem.size) if sum(one) == problem.total]

    def verify(self, problem: Chosen) -> str:
        """Count subsets by size and sum, one number after the other."""
        counts = {(0, 0): 1}
        for number in problem.numbers:
            for (size, total), count in list(counts.items()):
                key = size + 1, total + number
                counts[key] = counts.get(key, 0) + count
        return str(counts.get((problem.size, problem.total), 0))

    def steps(self, problem: Chosen) -> tuple[str, ...]:
        """Write the subsets, e.g. `1+8`, `4+5`."""
        return tuple("+".join(map(str, one)) for one in self._found(problem))

    def work(self, problem: Chosen) -> int:
        """Subsets of the size."""
        return math.comb(len(problem.numbers), problem.size)

    def guesses(self, problem: Chosen) -> range:
        """From none to the most subsets of the size that can have one sum: that of 1, 2, 3, ... has most (Stanley 1980)."""
        return range(_most(len(problem.numbers), problem.size) + 1)


@functools.cache
def _most(n: int, size: int) -> int:
    return max(Counter(map(sum, itertools.combinations(range(n), size))).values())


FAMILY = SubsetSums()
