"""Elementary cellular automata on a ring."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_STEPS = (2, 3, 4, 5, 6, 7)
WIDTHS = (5, 6, 7, 8, 9, 11)
"""Steps and cells of the ring, by level."""


class Cells(NamedTuple):
    """Number of the rule, cells, and steps."""

    rule: int
    cells: str
    n: int


class CellularAutomaton(Family):
    """`CELLS 110:01101:2?`: every row. This family is held out."""

    name, skill, domain = "cellular_automaton", "simulation", "mathematics"
    held_out = True
    keyword = "CELLS"
    answer_form = "word"
    max_answer_chars = 9
    ask = "the final cells, as a string of 0 and 1,"
    templates = (
        "Run the elementary cellular automaton of rule {rule} for {n} steps on a ring with the cells {cells}. "
        "What are the cells then?",
        "On a ring of cells, the new value of each cell depends on its left neighbour, itself and its right neighbour: "
        "{table}. Which cells does {cells} become after {n} steps?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Steps and cells."""
        return {"steps": N_STEPS[level - 1], "cells": WIDTHS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Cells:
        """Draw the rule and the cells."""
        cells = "".join(rng.choices("01", k=WIDTHS[level - 1]))
        return Cells(rng.randrange(256), cells, N_STEPS[level - 1])

    def level_of(self, problem: Cells) -> int:
        """From steps and cells."""
        level = rung(N_STEPS, problem.n)
        return level if level == rung(WIDTHS, len(problem.cells)) else 0

    def compact(self, problem: Cells) -> str:
        """Write the question, e.g. `CELLS 110:01101:2?`."""
        return f"CELLS {problem.rule}:{problem.cells}:{problem.n}?"

    def fields(self, problem: Cells) -> dict[str, object]:
        """Also the table of the rule."""
        table = ", ".join(f"{i:03b} gives {problem.rule >> i & 1}" for i in reversed(range(8)))
        return {**problem._asdict(), "table": table}

    def answer(self, problem: Cells) -> str:
        """Look up every cell in the table of the rule."""
        return self.steps(problem)[-1]

    def verify(self, problem: Cells) -> str:
        """Hold the ring in one integer, and combine its rotations with bit operations, neighbourhood by neighbourhood."""
        width = len(problem.cells)
        full, row = (1 << width) - 1, int(problem.cells, 2)
        for _ in range(problem.n):
            left = row >> 1 | (row & 1) << (width - 1)
            right = (row << 1 | row >> (width - 1)) & full
            after = 0
            for i in range(8):
                if problem.rule >> i & 1:
                    match = [part if i >> bit & 1 else ~part for bit, part in ((2, left), (1, row), (0, right))]
                    after |= match[0] & match[1] & match[2] & full
            row = after
        return f"{row:0{width}b}"

    def steps(self, problem: Cells) -> tuple[str, ...]:
        """Write every row, e.g. `11111`, `00000`."""
        table = {f"{i:03b}": str(problem.rule >> i & 1) for i in range(8)}
        rows, row = [], problem.cells
        for _ in range(problem.n):
            ring = row[-1] + row + row[0]
            row = "".join(table[ring[i : i + 3]] for i in range(len(row)))
            rows.append(row)
        return tuple(rows)

    def guesses(self, problem: Cells) -> int:
        """All rows."""
        return 2 ** len(problem.cells)

    def guess(self, problem: Cells, rng: random.Random) -> str:
        """Draw a row."""
        return "".join(rng.choices("01", k=len(problem.cells)))


FAMILY = CellularAutomaton()
