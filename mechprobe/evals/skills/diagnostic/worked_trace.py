"""Traces of a straight-line program on one variable."""

import random

from mechprobe.evals.skills.diagnostic.worked import Line, Worked, WorkedFamily

PYTHON = {"+": "+", "-": "-", "*": "*", "/": "//", "%": "%"}


class WorkedTrace(WorkedFamily):
    """`TRACED 7*5%9/2:7*5=35;35%9=8;8/2=4?`: `/` rounds down; `none`."""

    name, domain = "worked_trace", "coding"
    keyword, alias = "TRACED", "DEBUG"
    n_steps = (2, 3, 3, 4, 4, 5)
    largest = (20, 20, 50, 50, 99, 99)
    templates = (
        "This Python program runs with x = {start} at the start:\n{statement}\nSomeone traced it by hand:\n{solution}\nAt most one step "
        "of the trace is wrong; the steps after it build on it. {verdict}",
        "Check the trace of a Python program. The program, before which x is {start}:\n{statement}\nThe trace:\n{solution}\nNo more than "
        "one step contains an error. {verdict}",
        "Given x = {start}, the program\n{statement}\nis said to run like this:\n{solution}\nFind the step that does not agree with "
        "the program or with the steps before it, if there is one. {verdict}",
    )

    def operation(self, rng: random.Random, value: int) -> str:
        """Draw an operator and a digit from 2 to 9."""
        del value
        return f"{rng.choice('+-*/%')}{rng.randint(2, 9)}"

    def result(self, value: int, operation: str) -> int:
        """Evaluate the assignment."""
        sign, number = operation[0], int(operation[1:])
        results = {
            "+": value + number,
            "-": value - number,
            "*": value * number,
            "/": value // number,
            "%": value % number,
        }
        return results[sign]

    def check(self, value: int, operation: str) -> int:
        """Count in steps of one, and divide by taking away the divisor while it goes."""
        sign, number, quotient = operation[0], int(operation[1:]), 0
        if sign in "/%":
            while value >= number:
                value, quotient = value - number, quotient + 1
            return quotient if sign == "/" else value
        if sign == "*":
            return sum(number for _ in range(value))
        return len(range(-number, value)) if sign == "+" else value - len(range(number))

    def statement(self, problem: Worked) -> str:
        """The program."""
        return "\n".join(map(self.spelled, problem.operations))

    def spelled(self, operation: str) -> str:
        """E.g. `x = x // 2`."""
        return f"x = x {PYTHON[operation[0]]} {operation[1:]}"

    def written(self, line: Line) -> str:
        """E.g. `x = 8 // 2 = 4`."""
        return f"x = {line.before} {PYTHON[line.operation[0]]} {line.operation[1:]} = {line.after}"


FAMILY = WorkedTrace()
