"""Worked chains of sums, differences and products."""

import random

from mechprobe.evals.skills.diagnostic.worked import WorkedFamily

SPELLED = {"+": "add {0}", "-": "subtract {0}", "*": "multiply by {0}"}


class WorkedSums(WorkedFamily):
    """`MENDS 7+5*3:7+5=12;12*3=35?`: the statement is applied from left to right; `2:36`."""

    name, domain = "worked_sums", "mathematics"
    keyword, alias = "MENDS", "REPAIR"
    n_steps = (2, 3, 3, 4, 4, 5)
    largest = (20, 20, 50, 50, 99, 99)
    templates = (
        "Start with {start} and do this in order: {statement}. Someone solved it in these steps:\n{solution}\nAt most one step is "
        "wrong; the steps after it build on it. {verdict}",
        "Check the solution of this problem: take {start}, then {statement}, each time with the last result.\n{solution}\nNo more "
        "than one step contains an error. {verdict}",
        "Problem: from {start}, {statement}, in this order. Claimed solution:\n{solution}\nFind the step that does not agree with "
        "the problem or with the steps before it, if there is one. {verdict}",
    )

    def operation(self, rng: random.Random, value: int) -> str:
        """Draw a sign and a digit from 2 to 9."""
        del value
        return f"{rng.choice('+-*')}{rng.randint(2, 9)}"

    def result(self, value: int, operation: str) -> int:
        """Calculate."""
        sign, number = operation[0], int(operation[1:])
        return value + number if sign == "+" else value - number if sign == "-" else value * number

    def check(self, value: int, operation: str) -> int:
        """Count: by ones, and for products by adding the value again and again."""
        sign, number = operation[0], int(operation[1:])
        if sign == "*":
            return sum(value for _ in range(number))
        for _ in range(number):
            value = value + 1 if sign == "+" else value - 1
        return value

    def spelled(self, operation: str) -> str:
        """E.g. `add 5`."""
        return SPELLED[operation[0]].format(operation[1:])


FAMILY = WorkedSums()
