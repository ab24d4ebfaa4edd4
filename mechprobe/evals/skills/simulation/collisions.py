"""Equal balls on a line that collide elastically."""

import itertools
import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_BALLS = (3, 4, 5, 6, 7, 7)
N_SECONDS = (4, 6, 8, 10, 12, 16)
"""Balls, and seconds to follow them, by level."""
PLACES = range(0, 60, 2)
"""Positions in m; even, so that balls meet at whole seconds only."""


class Balls(NamedTuple):
    """Positions in m from left to right, velocities of 1 or -1 m/s, and seconds."""

    positions: tuple[int, ...]
    velocities: tuple[int, ...]
    seconds: int


class Collisions(Family):
    """`BALLS 4+,10-,16-:6?`: the positions after every second; balls that meet exchange their velocities."""

    name, skill, domain = "collisions", "simulation", "physics"
    keyword, alias = "BALLS", "BEADS"
    answer_form = "list"
    max_answer_chars = 27
    ask = "the positions in metres from left to right, separated by commas,"
    templates = (
        "On a frictionless line are {n} equal balls: {told}. They collide elastically, so that two balls that meet exchange "
        "their velocities. Where are the balls after {seconds} s?",
        "{n} identical beads slide on a straight wire. At first: {told}. All collisions are elastic. Give the positions of "
        "the beads after {seconds} s.",
        "Consider {n} point particles of equal mass in one dimension: {told}. Two that meet bounce off each other without "
        "loss of energy. Determine all positions after {seconds} s.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Balls and seconds."""
        return {"balls": N_BALLS[level - 1], "seconds": N_SECONDS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Balls:
        """Draw positions and directions."""
        n = N_BALLS[level - 1]
        positions = tuple(sorted(rng.sample(PLACES, n)))
        return Balls(positions, tuple(rng.choice((-1, 1)) for _ in range(n)), N_SECONDS[level - 1])

    def level_of(self, problem: Balls) -> int:
        """From balls and seconds; some balls must meet."""
        level, free = rung(N_SECONDS, problem.seconds), _free(problem)
        return level if level and len(free) == N_BALLS[level - 1] and free != sorted(free) else 0

    def compact(self, problem: Balls) -> str:
        """Write the question, e.g. `BALLS 4+,10-,16-:6?`."""
        balls = zip(problem.positions, problem.velocities, strict=True)
        return "BALLS " + ",".join(f"{x}{'+' if v > 0 else '-'}" for x, v in balls) + f":{problem.seconds}?"

    def fields(self, problem: Balls) -> dict[str, object]:
        """The balls in words."""
        balls = zip(problem.positions, problem.velocities, strict=True)
        told = "; ".join(f"one at {x} m moving {'right' if v > 0 else 'left'} at 1 m/s" for x, v in balls)
        return {"n": len(problem.positions), "told": told, "seconds": problem.seconds}

    def answer(self, problem: Balls) -> str:
        """Move second by second, with every collision."""
        return self.steps(problem)[-1]

    def verify(self, problem: Balls) -> str:
        """Exchanging velocities looks like passing through each other: move freely and sort."""
        return ",".join(map(str, sorted(_free(problem))))

    def steps(self, problem: Balls) -> tuple[str, ...]:
        """Write all positions after every second, e.g. `5,9,15`, `6,8,14`."""
        positions, velocities, result = list(problem.positions), list(problem.velocities), []
        for _ in range(problem.seconds):
            positions = [x + v for x, v in zip(positions, velocities, strict=True)]
            for i, j in itertools.pairwise(range(len(positions))):
                if positions[i] == positions[j]:
                    velocities[i], velocities[j] = velocities[j], velocities[i]
            result.append(",".join(map(str, positions)))
        return tuple(result)

    def guesses(self, problem: Balls) -> tuple[str, ...]:
        """All positions that balls in these places with any directions can reach."""
        moves = itertools.product((-problem.seconds, problem.seconds), repeat=len(problem.positions))
        ends = (sorted(x + move for x, move in zip(problem.positions, each, strict=True)) for each in moves)
        return tuple(dict.fromkeys(",".join(map(str, end)) for end in ends))

    def chance(self, problem: Balls) -> float:
        """Counted without the texts, which takes most of the time."""
        sums = {0}
        for x in problem.positions:  # a set of positions as one number: how many balls are at each place
            sums = {s + (1 << 3 * (x + move + 20)) for s in sums for move in (-problem.seconds, problem.seconds)}
        return 1 / len(sums)


def _free(problem: Balls) -> list[int]:
    """The positions at the end if the balls passed through each other."""
    return [x + v * problem.seconds for x, v in zip(problem.positions, problem.velocities, strict=True)]


FAMILY = Collisions()
