"""Microstates of identical bosons on given energy levels with a given total energy."""

import functools
import math
import random
from collections import Counter, defaultdict
from itertools import combinations_with_replacement
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

SIZES: tuple[tuple[int, int], ...] = ((5, 2), (5, 3), (6, 3), (6, 4), (7, 4), (8, 4))
"""How many energy levels and how many particles, by level."""


class Ensemble(NamedTuple):
    """Ascending energies of the levels, number of particles, and total energy."""

    energies: tuple[int, ...]
    particles: int
    energy: int


class Microstates(Family):
    """`STATES 2:0,1,3,4,6=4?`: two particles can share the energy 4 in two ways."""

    name, skill, domain = "microstates", "enumeration", "physics"
    version = 2
    keyword, alias = "STATES", "MICRO"
    answer_form = "integer"
    max_answer_chars = 3
    templates = (
        "{particles} identical bosons occupy non-degenerate single-particle levels with the energies {listed} (in units of E0). "
        "How many microstates have the total energy {energy} E0?",
        "A system has single-particle energies {listed} in units of E0, each of one state. Count the microstates of {particles} "
        "identical bosons whose total energy is {energy} E0.",
        "In how many ways can {particles} indistinguishable bosons be placed on levels of energy {listed} (one state each, any "
        "number of particles in a state) such that the energies add up to {energy}?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """How many levels and particles."""
        return dict(zip(("levels", "particles"), SIZES[level - 1], strict=True))

    def draw(self, rng: random.Random, level: int) -> Ensemble:
        """Draw the energies from 0 to 9, then one of the answers that they can have, then one of the totals with that answer.

        So no answer is much more frequent than others. A total with the answer 0 is within the range of the totals.
        """
        n_levels, n = SIZES[level - 1]
        energies = sorted(rng.sample(range(10), n_levels))
        found, totals = Counter(map(sum, combinations_with_replacement(energies, n))), defaultdict[int, list[int]](list)
        for total in range(min(found), max(found) + 1):
            totals[found[total]].append(total)
        return Ensemble(tuple(energies), n, rng.choice(totals[rng.choice(sorted(totals))]))

    def level_of(self, problem: Ensemble) -> int:
        """From how many levels and particles there are."""
        return rung(SIZES, (len(problem.energies), problem.particles))

    def compact(self, problem: Ensemble) -> str:
        """Write the question, e.g. `STATES 2:0,1,3,4,6=4?`."""
        return f"STATES {problem.particles}:{','.join(map(str, problem.energies))}={problem.energy}?"

    def fields(self, problem: Ensemble) -> dict[str, object]:
        """Also the energies in a list."""
        return {**problem._asdict(), "listed": ", ".join(map(str, problem.energies))}

    def _found(self, problem: Ensemble) -> list[tuple[int, ...]]:
        states = combinations_with_replacement(problem.energies, problem.particles)
        return [state for state in states if sum(state) == problem.energy]

    def answer(self, problem: Ensemble) -> str:
        """Try every state."""
        return str(len(self._found(problem)))

    def verify(self, problem: Ensemble) -> str:
        """The coefficient of x^E z^N in the product of 1 / (1 - z x^e) over the levels."""
        counts = [[0] * (problem.energy + 1) for _ in range(problem.particles + 1)]
        counts[0][0] = 1
        for e in problem.energies:
            for n in range(1, problem.particles + 1):
                for total in range(e, problem.energy + 1):
                    counts[n][total] += counts[n - 1][total - e]
        return str(counts[-1][-1])

    def steps(self, problem: Ensemble) -> tuple[str, ...]:
        """Write the energies of the particles in every state, e.g. `0+4`, `1+3`."""
        return tuple("+".join(map(str, state)) for state in self._found(problem))

    def work(self, problem: Ensemble) -> int:
        """Number of states of any energy."""
        return math.comb(len(problem.energies) + problem.particles - 1, problem.particles)

    def guesses(self, problem: Ensemble) -> range:
        """From none to the most states of one energy: those of the energies 0, 1, 2, ... have most (Stanley 1980)."""
        return range(_most(len(problem.energies), problem.particles) + 1)


@functools.cache
def _most(n_levels: int, particles: int) -> int:
    return max(Counter(map(sum, combinations_with_replacement(range(n_levels), particles))).values())


FAMILY = Microstates()
