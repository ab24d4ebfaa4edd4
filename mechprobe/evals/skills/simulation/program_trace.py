"""Programs with a loop and a branch."""

import random
from typing import Any, NamedTuple

from mechprobe.evals.skills import programs
from mechprobe.evals.skills.family import Family, rung

N_ROUNDS = (2, 3, 4, 5, 6, 8)
"""Rounds of the loop, by level."""


class Traced(NamedTuple):
    """A program, see `mechprobe.evals.skills.programs`, and the variable that is asked for."""

    program: Any
    name: str


class ProgramTrace(Family):
    """`PROG a=3;b=5;FOR i=0:4[a=(2*a+b)%7;IF a>3[b=b+i][b=b+4]];a?`: every assignment."""

    name, skill, domain = "program_trace", "simulation", "coding"
    keyword, alias = "PROG", "SCRIPT"
    words = programs.WORDS[:2]
    answer_form = "integer"
    max_answer_chars = 3
    templates = (
        "What is the value of `{name}` after this Python program has run?\n```python\n{python}\n```",
        "```python\n{python}\nprint({name})\n```\nWhat does this program print?",
        "Trace the following Python code and report the final value of `{name}`.\n```python\n{python}\n```",
        "Suppose that a Python interpreter executes the lines below. What does the variable `{name}` hold in the end?\n"
        "```python\n{python}\n```",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Rounds of the loop."""
        return {"rounds": N_ROUNDS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Traced:
        """Draw numbers and operations of one scheme of program."""
        m, k = rng.randint(5, 19), rng.randint(1, 3)
        mixed = (rng.choice("+-"), ("*", k, "a") if k > 1 else "a", "b")
        then, other = (("let", "b", (rng.choice("+-"), "b", rng.choice(("i", rng.randint(1, 5))))) for _ in range(2))
        body = (
            ("let", "a", ("%", mixed, m)),
            ("if", (rng.choice("<>"), "a", rng.randint(1, m - 2)), (then,), (other,)),
        )
        start = (("let", "a", rng.randrange(10)), ("let", "b", rng.randrange(10)))
        return Traced((*start, ("for", "i", 0, N_ROUNDS[level - 1], body)), rng.choice("aab"))

    def level_of(self, problem: Traced) -> int:
        """From the rounds of the loop."""
        return rung(N_ROUNDS, problem.program[-1][3])

    def compact(self, problem: Traced) -> str:
        """Write the question, e.g. `PROG a=3;b=5;FOR i=0:4[a=(2*a+b)%7;IF a>3[b=b+i][b=b+4]];a?`."""
        return f"PROG {programs.compact_text(problem.program)};{problem.name}?"

    def fields(self, problem: Traced) -> dict[str, object]:
        """The program as Python writes it."""
        return {"name": problem.name, "python": programs.python_text(problem.program)}

    def answer(self, problem: Traced) -> str:
        """Run the interpreter."""
        return str(programs.run(problem.program).variables[problem.name])

    def verify(self, problem: Traced) -> str:
        """Run the stack machine."""
        return str(programs.run_on_stack(problem.program).variables[problem.name])

    def steps(self, problem: Traced) -> tuple[str, ...]:
        """Write every assignment, e.g. `a=3`, `b=5`, `a=4`."""
        return tuple(f"{name}={value}" for name, value in programs.run(problem.program).log)

    def guesses(self, problem: Traced) -> range:
        """The remainders that a can have; for b, as far as the largest change in every round leads."""
        (_, _, start), (_, _, _, n, ((_, _, (_, _, m)), (_, _, *sides))) = problem.program[1:]
        if problem.name == "a":
            return range(m)
        changes = [side[0][2] for side in sides]
        far = sum(max(i if amount == "i" else amount for _, _, amount in changes) for i in range(n))
        signs = {symbol for symbol, _, _ in changes}
        return range(start - far * ("-" in signs), start + far * ("+" in signs) + 1)


FAMILY = ProgramTrace()
