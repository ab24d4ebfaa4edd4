"""Values of integer expressions with variables."""

import random
from typing import Any, NamedTuple

from mechprobe.evals.skills import programs
from mechprobe.evals.skills.family import Family, rung

N_OPERATIONS = (2, 3, 4, 5, 6, 8)
"""Operations of the expression, by level."""
NAMES = "ab"


class Assigned(NamedTuple):
    """The values of a and b, and an expression, see `mechprobe.evals.skills.programs`."""

    a: int
    b: int
    expression: Any


class Expressions(Family):
    """`EVAL a=3;b=5;(a+b)*2-7%3?`: every operation in the order of evaluation."""

    name, skill, domain = "expressions", "calculation", "coding"
    keyword, alias = "EVAL", "VALUE"
    answer_form = "integer"
    max_answer_chars = 9
    templates = (
        "In Python, what is the value of `{python}` after `a = {a}` and `b = {b}`?",
        "Evaluate the Python expression `{python}` for a = {a} and b = {b}.",
        "Given a = {a} and b = {b}, compute `{python}` as Python does.",
        "```python\na = {a}\nb = {b}\nprint({python})\n```\nWhat does this program print?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Operations of the expression."""
        return {"operations": N_OPERATIONS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Assigned:
        """Draw both values and the expression."""
        expression = programs.draw_expression(rng, N_OPERATIONS[level - 1], NAMES, operators="++--**%/")
        return Assigned(rng.randint(1, 9), rng.randint(1, 9), expression)

    def level_of(self, problem: Assigned) -> int:
        """From the number of operations; an expression must have a variable."""
        both = all(name in programs.expression_text(problem.expression) for name in NAMES)
        return rung(N_OPERATIONS, programs.n_operations(problem.expression)) if both else 0

    def compact(self, problem: Assigned) -> str:
        """Write the question, e.g. `EVAL a=3;b=5;(a+b)*2-7%3?`."""
        return f"EVAL a={problem.a};b={problem.b};{programs.expression_text(problem.expression)}?"

    def fields(self, problem: Assigned) -> dict[str, object]:
        """The expression as Python writes it."""
        python = programs.expression_text(problem.expression, python=True)
        return {"a": problem.a, "b": problem.b, "python": python}

    def answer(self, problem: Assigned) -> str:
        """Walk the tree."""
        return str(programs.evaluate(problem.expression, _values(problem)))

    def verify(self, problem: Assigned) -> str:
        """Run it on the stack machine."""
        done = programs.run_on_stack((("out", problem.expression),), _values(problem))
        return str(done.printed[0])

    def steps(self, problem: Assigned) -> tuple[str, ...]:
        """Write every operation, e.g. `3+5=8`, `8*2=16`, `7%3=1`, `16-1=15`."""
        return tuple(programs.reductions(problem.expression, _values(problem)))

    def guesses(self, problem: Assigned) -> range:
        """Up to the largest absolute value that operations of these sizes can give."""
        bound = _bound(problem.expression, _values(problem))
        return range(-bound, bound + 1)


def _values(problem: Assigned) -> dict[str, int]:
    return {"a": problem.a, "b": problem.b}


def _bound(expression: Any, values: dict[str, int]) -> int:
    if not isinstance(expression, tuple):
        return programs.evaluate(expression, values)
    symbol, left, right = expression
    first, second = _bound(left, values), _bound(right, values)
    if symbol == "%":
        return second - 1
    return {"+": first + second, "-": first + second, "*": first * second, "/": first}[symbol]


FAMILY = Expressions()
