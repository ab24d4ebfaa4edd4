"""The entities of a text that have a property."""

import random
import string
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung, set_text

N_BOXES = (4, 5, 6, 8, 10, 12)
"""Boxes in the text, by level."""
RELATIONS = {
    ">": "more than {coins}",
    "<": "fewer than {coins}",
    "=": "exactly {coins}",
    "!": "a number of coins other than {bound}",
}


class Boxes(NamedTuple):
    """The letters of the boxes, the coins in each, and the condition on the coins."""

    names: str
    coins: tuple[int, ...]
    relation: str
    bound: int


class WithProperty(Family):
    """`WHICH b4a7c2d9>5?`: `{a,d}`."""

    name, skill, domain = "with_property", "enumeration", "non_reasoning_qa"
    version = 2
    keyword, alias = "WHICH", "LETTERS"
    answer_form = "set"
    max_answer_chars = 30
    templates = (
        "{text} Which boxes hold {condition}? List their letters.",
        "Read the text and name all boxes that hold {condition}. {text}",
        "{text} Go through the text and collect the letter of every box that holds {condition}.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Boxes in the text."""
        return {"boxes": N_BOXES[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Boxes:
        """Draw the boxes and a condition that holds for one box or more, but not for all."""
        names = "".join(rng.sample(string.ascii_lowercase, N_BOXES[level - 1]))
        coins = tuple(rng.randrange(10) for _ in names)
        problem = Boxes(names, coins, rng.choice("><=!"), rng.choice(coins))
        return problem if 0 < len(self._found(problem)) < len(names) else self.draw(rng, level)

    def level_of(self, problem: Boxes) -> int:
        """From the number of boxes."""
        return rung(N_BOXES, len(problem.names))

    def compact(self, problem: Boxes) -> str:
        """Write the question, e.g. `WHICH b4a7c2d9>5?`."""
        listed = "".join(f"{name}{n}" for name, n in zip(problem.names, problem.coins, strict=True))
        return f"WHICH {listed}{problem.relation}{problem.bound}?"

    def fields(self, problem: Boxes) -> dict[str, str]:
        """The text and the condition."""
        sentences = (f"Box {name} holds {_coins(n)}." for name, n in zip(problem.names, problem.coins, strict=True))
        condition = RELATIONS[problem.relation].format(bound=problem.bound, coins=_coins(problem.bound))
        return {"text": " ".join(sentences), "condition": condition}

    def _found(self, problem: Boxes) -> list[tuple[str, int]]:
        """The boxes in the order of the text."""
        tests = {
            ">": problem.bound.__lt__, "<": problem.bound.__gt__, "=": problem.bound.__eq__, "!": problem.bound.__ne__,
        }  # fmt: skip
        return [one for one in zip(problem.names, problem.coins, strict=True) if tests[problem.relation](one[1])]

    def answer(self, problem: Boxes) -> str:
        """Test every box; the letters are sorted."""
        return set_text(sorted(name for name, _ in self._found(problem)))

    def verify(self, problem: Boxes) -> str:
        """Sort the boxes by their coins, and take those behind, before, in or outside the run with the bound."""
        ordered = sorted(zip(problem.coins, problem.names, strict=True))
        first = sum(coins < problem.bound for coins in problem.coins)
        last = first + problem.coins.count(problem.bound)
        parts = {
            ">": ordered[last:],
            "<": ordered[:first],
            "=": ordered[first:last],
            "!": ordered[:first] + ordered[last:],
        }
        return set_text(sorted(name for _, name in parts[problem.relation]))

    def steps(self, problem: Boxes) -> tuple[str, ...]:
        """Write the boxes that fit, e.g. `a7`, `d9`."""
        return tuple(f"{name}{n}" for name, n in self._found(problem))

    def work(self, problem: Boxes) -> int:
        """Boxes to test."""
        return len(problem.names)

    def guesses(self, problem: Boxes) -> int:
        """Number of sets of boxes, without none and all."""
        return 2 ** len(problem.names) - 2

    def guess(self, problem: Boxes, rng: random.Random) -> str:
        """Draw such a set."""
        bits = rng.randint(1, 2 ** len(problem.names) - 2)
        return set_text(sorted(name for i, name in enumerate(problem.names) if bits >> i & 1))


def _coins(n: int) -> str:
    return f"{n} coin{'s' if n != 1 else ''}"


FAMILY = WithProperty()
