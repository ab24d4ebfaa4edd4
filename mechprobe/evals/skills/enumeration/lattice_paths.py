"""Lattice paths to the right and up that avoid blocked points; a held-out family."""

import math
import random
from itertools import combinations, pairwise
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

SIDES = (4, 5, 6, 7, 8, 9)
BLOCKED = (3, 3, 3, 4, 4, 5)
"""Longer side of the grid and number of blocked points, by level."""


class Grid(NamedTuple):
    """The far corner (width, height) and the blocked points."""

    width: int
    height: int
    blocked: tuple[tuple[int, int], ...]


class LatticePaths(Family):
    """`PATHS 4*3:11,20,32?`: paths from (0, 0) to (4, 3) that avoid (1, 1), (2, 0) and (3, 2)."""

    name, skill, domain = "lattice_paths", "enumeration", "mathematics"
    held_out = True
    keyword = "PATHS"
    answer_form = "integer"
    max_answer_chars = 5
    templates = (
        "A path goes from (0, 0) to ({width}, {height}) and moves one unit to the right or one unit up at every step. It must not "
        "visit the points {listed}. How many such paths are there?",
        "Count the shortest grid paths from (0, 0) to ({width}, {height}) whose steps go right or up and which avoid {listed}.",
        "A robot at (0, 0) can only increase one of its two coordinates by 1 per move. In how many ways can it reach ({width}, "
        "{height}) if the points {listed} are forbidden?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Longer side and number of blocked points."""
        return {"side": SIDES[level - 1], "blocked": BLOCKED[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Grid:
        """Draw the shorter side, which is at most two shorter, and the blocked points."""
        long, short = SIDES[level - 1], SIDES[level - 1] - rng.randint(0, 2)
        width, height = rng.choice(((long, short), (short, long)))
        points = [
            (x, y) for x in range(width + 1) for y in range(height + 1) if (x, y) not in ((0, 0), (width, height))
        ]
        return Grid(width, height, tuple(sorted(rng.sample(points, BLOCKED[level - 1]))))

    def level_of(self, problem: Grid) -> int:
        """From the longer side."""
        return rung(SIDES, max(problem.width, problem.height))

    def compact(self, problem: Grid) -> str:
        """Write the question, e.g. `PATHS 4*3:11,20,32?`."""
        return f"PATHS {problem.width}*{problem.height}:{','.join(f'{x}{y}' for x, y in problem.blocked)}?"

    def fields(self, problem: Grid) -> dict[str, object]:
        """The points in a list."""
        return {**problem._asdict(), "listed": ", ".join(f"({x}, {y})" for x, y in problem.blocked)}

    def _rows(self, problem: Grid) -> list[list[int]]:
        """Number of paths to every point, row by row: the sum of those to the left and below."""
        rows: list[list[int]] = []
        for y in range(problem.height + 1):
            row: list[int] = []
            for x in range(problem.width + 1):
                paths = (row[-1] if x else int(y == 0)) + (rows[-1][x] if y else 0)
                row.append(0 if (x, y) in problem.blocked else paths)
            rows.append(row)
        return rows

    def answer(self, problem: Grid) -> str:
        """Add up paths point by point."""
        return str(self._rows(problem)[-1][-1])

    def verify(self, problem: Grid) -> str:
        """Take away, by inclusion and exclusion, the paths through every chain of blocked points."""
        end, total = (problem.width, problem.height), 0
        for n in range(len(problem.blocked) + 1):
            for chain in combinations(problem.blocked, n):
                stops = ((0, 0), *chain, end)
                legs = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(stops)]
                paths = math.prod(math.comb(dx + dy, dx) if min(dx, dy) >= 0 else 0 for dx, dy in legs)
                total += (-1) ** n * paths
        return str(total)

    def steps(self, problem: Grid) -> tuple[str, ...]:
        """Write the numbers of paths row by row, e.g. `1,1,0,0,0`."""
        return tuple(",".join(map(str, row)) for row in self._rows(problem))

    def guesses(self, problem: Grid) -> range:
        """From none to all paths of the grid without blocked points."""
        return range(math.comb(problem.width + problem.height, problem.width) + 1)


FAMILY = LatticePaths()
