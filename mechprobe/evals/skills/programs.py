"""Tiny programs for the coding cells: drawn, written as text, run on an interpreter and, to check it, on a stack machine.

A program is a tuple of statements, all of it JSON values:

- ``("let", name, expression)`` assigns; ``("out", expression)`` prints;
- ``("for", name, start, stop, body)`` runs the body for every integer from start up to stop - 1;
- ``("if", expression, body, other)`` runs the body if the expression is not 0, else the other.

An expression is an integer, the name of a variable or ``(operator, left, right)``. Comparisons give 1 or 0, ``/`` and ``%``
round down as in Python. No text is ever executed: neither these programs nor what a model writes.
"""

import operator
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Expression = Any
"""``int | str | (operator, Expression, Expression)``; a recursive alias would hide the shape from type checkers."""
Statement = tuple[Any, ...]
Program = tuple[Statement, ...]

_OPERATIONS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv, "%": operator.mod,
    "<": lambda x, y: int(x < y), ">": lambda x, y: int(x > y), "=": lambda x, y: int(x == y),
}  # fmt: skip
_RANK = {"<": 1, ">": 1, "=": 1, "+": 2, "-": 2, "*": 3, "/": 3, "%": 3}
_PYTHON = {"/": "//", "=": "=="}
WORDS = ("FOR", "IF", "OUT")
"""The words of `compact_text`."""


class Finished(NamedTuple):
    """What a program did.

    Attributes:
        variables: The last value of every variable, loop variables included.
        log: Name and value of every assignment in order, loop variables left out.
        printed: Every printed value.
    """

    variables: dict[str, int]
    log: tuple[tuple[str, int], ...]
    printed: tuple[int, ...]


def evaluate(expression: Expression, variables: Mapping[str, int]) -> int:
    """The value of an expression."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return variables[expression]
    symbol, left, right = expression
    return _OPERATIONS[symbol](evaluate(left, variables), evaluate(right, variables))


def run(program: Sequence[Statement], start: Mapping[str, int] | None = None) -> Finished:
    """Run a program statement by statement."""
    variables, log, printed = dict(start or {}), list[tuple[str, int]](), list[int]()

    def execute(body: Sequence[Statement]) -> None:
        for kind, *parts in body:
            if kind == "let":
                variables[parts[0]] = evaluate(parts[1], variables)
                log.append((parts[0], variables[parts[0]]))
            elif kind == "out":
                printed.append(evaluate(parts[0], variables))
            elif kind == "if":
                execute(parts[1] if evaluate(parts[0], variables) else parts[2])
            else:
                for value in range(parts[1], parts[2]):
                    variables[parts[0]] = value
                    execute(parts[3])

    execute(program)
    return Finished(variables, tuple(log), tuple(printed))


def run_on_stack(program: Sequence[Statement], start: Mapping[str, int] | None = None) -> Finished:
    """Run a program as flat instructions with jumps and a stack; checks `run`."""
    code = [*_compile(program), ("halt", None)]
    memory, stack, log, printed, at = dict(start or {}), list[int](), list[tuple[str, int]](), list[int](), 0
    while code[at][0] != "halt":
        instruction, value = code[at]
        at += 1
        if instruction == "push":
            stack.append(memory[value] if isinstance(value, str) else value)
        elif instruction == "apply":
            right, left = stack.pop(), stack.pop()
            stack.append(_OPERATIONS[value](left, right))
        elif instruction in ("store", "count"):
            memory[value] = stack.pop()
            if instruction == "store":
                log.append((value, memory[value]))
        elif instruction == "print":
            printed.append(stack.pop())
        elif instruction == "jump" or stack.pop() == 0:
            at += value
    return Finished(memory, tuple(log), tuple(printed))


def _compile(program: Sequence[Statement], depth: int = 0) -> list[tuple[str, Any]]:
    """Instructions of a program inside `depth` loops; jumps are relative to the next instruction."""
    code: list[tuple[str, Any]] = []
    for kind, *parts in program:
        if kind == "let":
            code += [*_postfix(parts[1]), ("store", parts[0])]
        elif kind == "out":
            code += [*_postfix(parts[0]), ("print", None)]
        elif kind == "if":
            body, other = _compile(parts[1], depth), _compile(parts[2], depth)
            code += [*_postfix(parts[0]), ("jump_if_zero", len(body) + 1), *body, ("jump", len(other)), *other]
        else:
            # The hidden counter is stored apart, so that the variable keeps its last value, as in Python.
            name, first, stop, body = parts[0], parts[1], parts[2], _compile(parts[3], depth + 1)
            hidden = f"counter {depth}"
            test = [("push", hidden), ("push", stop), ("apply", "<")]
            body = [("push", hidden), ("count", name), *body]
            body += [("push", hidden), ("push", 1), ("apply", "+"), ("count", hidden)]
            code += [("push", first), ("count", hidden), *test, ("jump_if_zero", len(body) + 1), *body]
            code.append(("jump", -(len(body) + len(test) + 2)))
    return code


def _postfix(expression: Expression) -> list[tuple[str, Any]]:
    if not isinstance(expression, tuple):
        return [("push", expression)]
    symbol, left, right = expression
    return [*_postfix(left), *_postfix(right), ("apply", symbol)]


def expression_text(expression: Expression, *, python: bool = False) -> str:
    """An expression with the parentheses that it needs; in Python, blanks stand around operators."""
    if not isinstance(expression, tuple):
        return str(expression)
    symbol, left, right = expression
    written = f" {_PYTHON.get(symbol, symbol)} " if python else symbol
    sides = [
        f"({expression_text(side, python=python)})" if _needs_parentheses(side, symbol, right=side is right) else
        expression_text(side, python=python)
        for side in (left, right)
    ]  # fmt: skip
    return sides[0] + written + sides[1]


def _needs_parentheses(side: Expression, symbol: str, *, right: bool) -> bool:
    if isinstance(side, int):
        return side < 0
    if not isinstance(side, tuple):
        return False
    rank, outer = _RANK[side[0]], _RANK[symbol]
    return rank < outer or (rank == outer and (right or outer == 1))


def compact_text(program: Sequence[Statement]) -> str:
    """A program in the closed vocabulary, e.g. `a=3;FOR i=0:4[a=a+i;IF a>9[a=a-5][]];OUT a`."""
    return ";".join(_compact(statement) for statement in program)


def _compact(statement: Statement) -> str:
    kind, *parts = statement
    if kind == "let":
        return f"{parts[0]}={expression_text(parts[1])}"
    if kind == "out":
        return f"OUT {expression_text(parts[0])}"
    if kind == "if":
        return f"IF {expression_text(parts[0])}[{compact_text(parts[1])}][{compact_text(parts[2])}]"
    return f"FOR {parts[0]}={parts[1]}:{parts[2]}[{compact_text(parts[3])}]"


def python_text(program: Sequence[Statement], indent: str = "") -> str:
    """A program as Python, one statement a line."""
    lines: list[str] = []
    for kind, *parts in program:
        if kind == "let":
            lines.append(f"{indent}{parts[0]} = {expression_text(parts[1], python=True)}")
        elif kind == "out":
            lines.append(f"{indent}print({expression_text(parts[0], python=True)})")
        elif kind == "if":
            lines += [f"{indent}if {expression_text(parts[0], python=True)}:", python_text(parts[1], indent + "    ")]
            if parts[2]:
                lines += [f"{indent}else:", python_text(parts[2], indent + "    ")]
        else:
            lines += [
                f"{indent}for {parts[0]} in range({parts[1]}, {parts[2]}):",
                python_text(parts[3], indent + "    "),
            ]
    return "\n".join(lines)


def draw_expression(
    rng: random.Random, n_operations: int, names: Sequence[str], *, operators: str = "+-*", largest: int = 9
) -> Expression:
    """Draw an expression with a number of operations over variables and constants of 1 to `largest`.

    The right side of `/` and `%` is a constant of at least 2.
    """
    if n_operations == 0:
        return rng.choice(names) if names and rng.random() < 0.6 else rng.randint(1, largest)
    symbol = rng.choice(operators)
    if symbol in "/%":
        left = draw_expression(rng, n_operations - 1, names, operators=operators, largest=largest)
        return (symbol, left, rng.randint(2, largest))
    n_left = rng.randrange(n_operations)
    left = draw_expression(rng, n_left, names, operators=operators, largest=largest)
    right = draw_expression(rng, n_operations - 1 - n_left, names, operators=operators, largest=largest)
    return (symbol, left, right)


def n_operations(expression: Expression) -> int:
    """Number of operations of an expression."""
    return 1 + n_operations(expression[1]) + n_operations(expression[2]) if isinstance(expression, tuple) else 0


def reductions(expression: Expression, variables: Mapping[str, int]) -> list[str]:
    """Every operation with its values, in the order of evaluation, e.g. `3+5=8`, `8*2=16`."""
    if not isinstance(expression, tuple):
        return []
    symbol, left, right = expression
    values = (evaluate(left, variables), evaluate(right, variables))
    own = f"{expression_text((symbol, *values))}={evaluate(expression, variables)}"
    return [*reductions(left, variables), *reductions(right, variables), own]
