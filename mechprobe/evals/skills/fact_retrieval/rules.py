"""The rules of the fact families: what each is called, and the questions that rest on it."""

import random
from collections.abc import Callable
from typing import NamedTuple

Numbers = tuple[int, ...]


class Rule(NamedTuple):
    """A theorem, law or fact, and the question that rests on it.

    Attributes:
        name: Its usual name.
        word: Its upper-case name in the compact rendering.
        asks: Upper-case word of the compact rendering for what is asked.
        question: The question in words, with the numbers as ``{0}``, ``{1}`` and so on.
        draw: ``draw(rng, low, high)`` draws the numbers; the first one lies between low and high, both included.
        answer: The right answer.
        check: The right answer by another formula, a table or brute force.
        work: The worked step of the compact rendering, with the numbers as in ``question`` and the answer as ``{answer}``.
        aliases: Further names in prose.
        shown: The numbers as the question shows them, where they stand for names, e.g. of months.
    """

    name: str
    word: str
    asks: str
    question: str
    draw: Callable[[random.Random, int, int], Numbers]
    answer: Callable[..., int]
    check: Callable[..., int]
    work: str
    aliases: tuple[str, ...] = ()
    shown: Callable[[Numbers], tuple[str, ...]] = lambda numbers: tuple(map(str, numbers))


def pair(low: int, high: int) -> Callable[[random.Random, int, int], Numbers]:
    """Draw the first number from the level's range and the second from ``low`` to ``high``."""
    return lambda rng, first, last: (rng.randint(first, last), rng.randint(low, high))
