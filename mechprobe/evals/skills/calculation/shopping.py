"""Change after a purchase."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_LINES = (1, 2, 3, 4, 5, 6)
"""Lines of the bill, by level."""
COUNTS, PRICES, NOTE = range(2, 10), range(2, 31), 10
GOODS = ("pens", "cups", "maps", "lamps", "books", "scarves")


class Bill(NamedTuple):
    """Number and price of the goods of every line, and what is paid: enough, in notes of ten coins."""

    lines: tuple[tuple[int, int], ...]
    paid: int


class Shopping(Family):
    """`SHOP 3*4;2*7:50?`: the price of every line, their sum, and the change."""

    name, skill, domain = "shopping", "calculation", "non_reasoning_qa"
    keyword, alias = "SHOP", "BILL"
    answer_form = "integer"
    max_answer_chars = 4
    ask = "the number of coins, as an integer,"
    templates = (
        "Mia buys {told}. She pays with {paid} coins. How many coins does she get back?",
        "In a shop, a customer takes {told} and hands over {paid} coins. How much change is due?",
        "A bill lists {told}. Someone pays {paid} coins. What is the change?",
        "With {paid} coins in his purse, Omar buys {told}. How many coins are left?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Lines of the bill."""
        return {"lines": N_LINES[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Bill:
        """Draw the lines, and up to ten notes more than needed."""
        lines = tuple((rng.choice(COUNTS), rng.choice(PRICES)) for _ in range(N_LINES[level - 1]))
        total = sum(count * price for count, price in lines)
        return Bill(lines, NOTE * (total // NOTE + rng.randint(1, 10)))

    def level_of(self, problem: Bill) -> int:
        """From the number of lines."""
        return rung(N_LINES, len(problem.lines))

    def compact(self, problem: Bill) -> str:
        """Write the question, e.g. `SHOP 3*4;2*7:50?`."""
        return "SHOP " + ";".join(f"{count}*{price}" for count, price in problem.lines) + f":{problem.paid}?"

    def fields(self, problem: Bill) -> dict[str, object]:
        """The lines in words."""
        lines = zip(problem.lines, GOODS, strict=False)
        *first, last = [f"{count} {goods} at {price} coins each" for (count, price), goods in lines]
        return {"told": f"{', '.join(first)} and {last}" if first else last, "paid": problem.paid}

    def answer(self, problem: Bill) -> str:
        """Take the bill from what is paid."""
        return str(problem.paid - sum(count * price for count, price in problem.lines))

    def verify(self, problem: Bill) -> str:
        """Pay every single piece."""
        left = problem.paid
        for count, price in problem.lines:
            for _ in range(count):
                left -= price
        return str(left)

    def steps(self, problem: Bill) -> tuple[str, ...]:
        """Write lines, sums and change, e.g. `3*4=12`, `2*7=14`, `12+14=26`, `50-26=24`."""
        steps, total = [], 0
        for count, price in problem.lines:
            steps.append(f"{count}*{price}={count * price}")
            if total:
                steps.append(f"{total}+{count * price}={total + count * price}")
            total += count * price
        return (*steps, f"{problem.paid}-{total}={problem.paid - total}")

    def guesses(self, problem: Bill) -> range:
        """Up to ten notes."""
        del problem
        return range(1, 10 * NOTE + 1)


FAMILY = Shopping()
