"""The interpreter of the coding cells: equal to a stack machine and to Python on what it draws."""

import random

import pytest

from mechprobe.evals.skills import programs
from mechprobe.evals.skills.vocabulary import tokens

NESTED = (
    ("let", "a", 3),
    ("for", "i", 0, 4, (("let", "a", ("+", "a", "i")), ("if", (">", "a", 5), (("let", "a", ("-", "a", 5)),), ()))),
    ("for", "i", 5, 5, (("let", "a", 0),)),
    ("if", ("=", ("%", "a", 2), 0), (("out", "a"),), (("out", ("*", -1, "a")), ("out", "i"))),
)  # fmt: skip


def test_a_nested_program_by_hand() -> None:
    # a: 3+0=3, 3+1=4, 4+2=6 -> 1, 1+3=4; the empty loop leaves i = 3; 4 is even, so 4 is printed
    done = programs.run(NESTED)
    assert done.log == (("a", 3), ("a", 3), ("a", 4), ("a", 6), ("a", 1), ("a", 4))
    assert done.printed == (4,)
    assert done.variables == {"a": 4, "i": 3}


def test_texts_of_a_nested_program() -> None:
    assert programs.compact_text(NESTED) == (
        "a=3;FOR i=0:4[a=a+i;IF a>5[a=a-5][]];FOR i=5:5[a=0];IF a%2=0[OUT a][OUT (-1)*a;OUT i]"
    )
    assert programs.python_text(NESTED).splitlines()[1:5] == [
        "for i in range(0, 4):", "    a = a + i", "    if a > 5:", "        a = a - 5",
    ]  # fmt: skip
    assert tokens("FOR i=0:4[a=12]") == ["FOR", "i", "=", "0", ":", "4", "[", "a", "=", "1", "2", "]"]


@pytest.mark.parametrize(
    "expression", [("-", 5, ("-", 3, 1)), ("*", ("+", 1, 2), 3), ("%", ("*", 7, 3), 4), ("-", -2, -3)]
)
def test_parentheses_keep_the_value(expression: object) -> None:
    assert eval(programs.expression_text(expression)) == programs.evaluate(expression, {})
    assert eval(programs.expression_text(expression, python=True)) == programs.evaluate(expression, {})


def test_interpreter_stack_machine_and_python_agree_on_drawn_programs() -> None:
    rng = random.Random(3)
    for _ in range(300):
        program = draw(rng, depth=2)
        start = {"a": rng.randint(0, 9), "b": rng.randint(0, 9), "i": 0, "j": 0}
        done = programs.run(program, start)
        on_stack = programs.run_on_stack(program, start)
        assert (done.log, done.printed) == (on_stack.log, on_stack.printed)
        assert done.variables == {name: on_stack.variables[name] for name in done.variables}
        scope: dict[str, int] = dict(start)
        printed: list[int] = []
        exec(programs.python_text(program), {"range": range, "print": printed.append}, scope)
        assert scope == done.variables
        assert tuple(printed) == done.printed


def draw(rng: random.Random, depth: int) -> programs.Program:
    def expression() -> object:
        return programs.draw_expression(rng, rng.randrange(4), "abij", operators="+-/%<>=")

    result: list[programs.Statement] = []
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(["let", "out", "if", "for"] if depth else ["let", "out"])
        if kind == "let":
            result.append(("let", rng.choice("ab"), expression()))
        elif kind == "out":
            result.append(("out", expression()))
        elif kind == "if":
            result.append(("if", expression(), draw(rng, depth - 1), draw(rng, depth - 1)))
        else:
            result.append(("for", rng.choice("ij"), 0, rng.randrange(4), draw(rng, depth - 1)))
    return tuple(result)


def test_drawn_expressions_have_the_asked_operations() -> None:
    rng = random.Random(0)
    for n in range(8):
        assert programs.n_operations(programs.draw_expression(rng, n, "ab", operators="+-*%")) == n
