"""Worked solutions as chains of steps, in which one step may be wrong: what the diagnostic families of numbers share."""

import random
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from mechprobe.evals.scorers.final_answer import NONE
from mechprobe.evals.skills.family import Family

CLEAN = "clean"
KINDS = (CLEAN, CLEAN, "injected", "drift", "inconsistent")
"""Two of five items have no error."""
ERR = "ERR"
"""Word of the compact traces before the wrong step, or before `none`."""


class Line(NamedTuple):
    """One line of a solution: the value before, the operation, and the value after, as they are written."""

    before: int
    operation: str
    after: int

    def __str__(self) -> str:
        return f"{self.before}{self.operation}={self.after}"


class Worked(NamedTuple):
    """The statement (a start value and operations), the solution, and what is wrong in it.

    A line is right if it begins with the value after the line before (the first one with the start value), has the operation
    of the statement, and ends with its result.
    """

    start: int
    operations: tuple[str, ...]
    lines: tuple[Line, ...]
    kind: str
    step: int
    """The wrong step, from 1; 0 without one."""
    right: int
    """What the wrong step should end with; 0 without one."""


class WorkedFamily(Family):
    """Diagnoses of chains. The answer is `step:value`, e.g. `2:36`: the wrong step and what it should end with; or `none`.

    Kinds of error: `injected`, a line has a wrong result; `drift`, a line has another constant than the statement;
    `inconsistent`, a line begins with another value than the one before ended with. All lines after it follow from it.
    """

    skill = "diagnostic"
    answer_form = "diagnosis"
    max_answer_chars = 5
    words = (ERR,)
    kinds = KINDS
    version = 2
    ask = "the number of the wrong step and its right result, as step:result (the word none if every step is right),"
    n_steps: ClassVar[tuple[int, ...]]
    largest: ClassVar[tuple[int, ...]]
    """Steps, and the largest value, by level."""
    largest_start: ClassVar[int] = 99

    @abstractmethod
    def operation(self, rng: random.Random, value: int) -> str:
        """Draw an operation that can follow on a value."""

    @abstractmethod
    def result(self, value: int, operation: str) -> int:
        """Apply an operation."""

    @abstractmethod
    def check(self, value: int, operation: str) -> int:
        """Apply an operation by another algorithm."""

    @abstractmethod
    def spelled(self, operation: str) -> str:
        """An operation of the statement, in words."""

    def knobs(self, level: int) -> dict[str, int]:
        """Steps and the largest value."""
        return {"steps": self.n_steps[level - 1], "largest": self.largest[level - 1]}

    def draw(self, rng: random.Random, level: int, kind: str = "") -> Worked:
        """Draw a chain and its error until the kind of error is possible and every value is in the range of the level."""
        kind = kind or rng.choice(KINDS)
        n, largest = self.n_steps[level - 1], self.largest[level - 1]
        while True:
            problem = self._drawn(rng, n, largest, kind)
            if problem is not None and self.level_of(problem) == level:
                return problem

    def _drawn(self, rng: random.Random, n: int, largest: int, kind: str) -> Worked | None:
        start = rng.randint(2, min(self.largest_start, 2 + largest // 2))
        operations, value = list[str](), start
        for _ in range(n):
            operations.append(self.operation(rng, value))
            value = self.result(value, operations[-1])
            if not 0 <= value <= largest:
                return None
        step = 0 if kind == CLEAN else rng.randint(2 if kind == "inconsistent" else 1, n)
        lines, right, value = list[Line](), 0, start
        for number, operation in enumerate(operations, 1):
            line = Line(value, operation, self.result(value, operation))
            if number == step:
                right, wrong = line.after, self._wrong(rng, kind, line, largest)
                if wrong is None or wrong.after == right:
                    return None
                line = wrong
            lines.append(line)
            value = line.after
        return Worked(start, tuple(operations), tuple(lines), kind, step, right)

    def _wrong(self, rng: random.Random, kind: str, line: Line, largest: int) -> Line | None:
        """The line with the smallest error of a kind; None where there is none."""
        if kind == "injected":
            return line._replace(after=line.after + rng.choice((-10, -2, -1, 1, 2, 10)))
        if kind == "inconsistent":
            before = line.before + rng.choice((-10, -2, -1, 1, 2, 10))
            if not 0 <= before <= largest or not self.allowed(before, line.operation):
                return None
            return Line(before, line.operation, self.result(before, line.operation))
        drifted = self.drifted(rng, line.operation)
        return (
            Line(line.before, drifted, self.result(line.before, drifted))
            if self.allowed(line.before, drifted)
            else None
        )

    def drifted(self, rng: random.Random, operation: str) -> str:
        """The operation with another constant at its end."""
        return operation[:-1] + rng.choice([digit for digit in "23456789" if digit != operation[-1]])

    def allowed(self, value: int, operation: str) -> bool:
        """Whether an operation is defined on a value."""
        del value, operation
        return True

    def level_of(self, problem: Worked) -> int:
        """From the number of steps and the largest value."""
        n = len(problem.operations)
        values = [value for line in problem.lines for value in (line.before, line.after)]
        if not all(value >= 0 for value in (*values, problem.right)):
            return 0
        reached = max(*values, problem.start, problem.right)
        below = 0
        for level, (steps, largest) in enumerate(zip(self.n_steps, self.largest, strict=True), 1):
            if steps == n and below < reached <= largest:
                return level
            below = largest if steps == n else 0
        return 0

    def content(self, problem: Worked) -> str:
        """Statement and solution, without what is wrong."""
        return self.compact(problem)

    def compact(self, problem: Worked) -> str:
        """Write statement and solution, e.g. `MENDS 7+5*3:7+5=12;12*3=35?`."""
        statement = f"{problem.start}{''.join(problem.operations)}"
        return f"{self.keyword} {statement}:{';'.join(map(str, problem.lines))}?"

    def fields(self, problem: Worked) -> dict[str, object]:
        """Statement and solution in words."""
        lines = (f"Step {number}: {self.written(line)}" for number, line in enumerate(problem.lines, 1))
        return {
            "start": problem.start,
            "statement": self.statement(problem),
            "solution": "\n".join(lines),
            "verdict": "Say in words which step is wrong, if any.",
        }

    def statement(self, problem: Worked) -> str:
        """The operations in words."""
        return ", ".join(map(self.spelled, problem.operations))

    def written(self, line: Line) -> str:
        """A line of the solution in words."""
        return f"{line.before} {_spaced(line.operation)} = {line.after}"

    def answer(self, problem: Worked) -> str:
        """As it was drawn."""
        return f"{problem.step}:{problem.right}" if problem.step else NONE

    def verify(self, problem: Worked) -> str:
        """Solve the statement by the other algorithm, and compare from the first line on."""
        value = problem.start
        for number, (operation, line) in enumerate(zip(problem.operations, problem.lines, strict=True), 1):
            before, value = value, self.check(value, operation)
            if line != Line(before, operation, value):
                return f"{number}:{value}"
        return NONE

    def steps(self, problem: Worked) -> tuple[str, ...]:
        """Write the right lines up to the wrong step, then its number, e.g. `7+5=12`, `12*3=36`, `ERR 2`."""
        value, lines = problem.start, list[str]()
        for operation in problem.operations[: problem.step or None]:
            lines.append(str(Line(value, operation, self.result(value, operation))))
            value = self.result(value, operation)
        return (*lines, f"{ERR} {problem.step or NONE}")

    def chat_steps(self, problem: Worked) -> str:
        """The right lines, then the verdict in words."""
        *lines, _ = self.steps(problem)
        numbered = (f"{number}. {line}" for number, line in enumerate(lines, 1))
        return "\n".join([*numbered, f"Step {problem.step} is wrong." if problem.step else "No step is wrong."])

    def guesses(self, problem: Worked) -> int:
        """`none`, and every step with every value of the level."""
        return 1 + len(problem.operations) * (self.largest[self.level_of(problem) - 1] + 1)

    def guess(self, problem: Worked, rng: random.Random) -> str:
        """Draw one of them."""
        number, largest = rng.randrange(self.guesses(problem)), self.largest[self.level_of(problem) - 1]
        return f"{1 + (number - 1) // (largest + 1)}:{(number - 1) % (largest + 1)}" if number else NONE

    def extras(self, problem: Worked) -> Mapping[str, Any]:
        """Kind, wrong step and right result."""
        if not problem.step:
            return {"kind": problem.kind}
        return {"kind": problem.kind, "step": problem.step, "corrected": str(problem.right)}


def _spaced(operation: str) -> str:
    return "".join(f" {char} " if char in "+-*/%" else char for char in operation).strip()
