"""Facts of everyday knowledge, each in a question with a quantity."""

import calendar
import random
import string
from collections.abc import Callable, Sequence

from mechprobe.evals.skills.fact_retrieval.facts import Facts
from mechprobe.evals.skills.fact_retrieval.rules import Numbers, Rule, pair

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS_IN = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ELEMENTS = (
    "h",
    "he",
    "li",
    "be",
    "b",
    "c",
    "n",
    "o",
    "f",
    "ne",
    "na",
    "mg",
    "al",
    "si",
    "p",
    "s",
    "cl",
    "ar",
    "k",
    "ca",
)
NUMBERS = {
    "hydrogen": 1, "helium": 2, "lithium": 3, "beryllium": 4, "boron": 5, "carbon": 6, "nitrogen": 7, "oxygen": 8, "fluorine": 9,
    "neon": 10, "sodium": 11, "magnesium": 12, "aluminium": 13, "silicon": 14, "phosphorus": 15, "sulfur": 16, "chlorine": 17,
    "argon": 18, "potassium": 19, "calcium": 20,
}  # fmt: skip
LEGS = {"bird": 2, "horse": 4, "ant": 6, "spider": 8, "dog": 4, "bee": 6}
SIDES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "octagon": 8}
CENTS = {"nickel": 5, "dime": 10, "quarter": 25, "dollar": 100}
LEG_GROUPS = (("bird",), ("horse", "dog"), ("ant", "bee"), ("spider",))


def _named(names: Sequence[str]) -> Callable[[Numbers], tuple[str, ...]]:
    """Show the last number as the name at that place."""
    return lambda numbers: (*map(str, numbers[:-1]), names[numbers[-1]])


def _of(names: Sequence[str]) -> Callable[[random.Random, int, int], Numbers]:
    return pair(0, len(names) - 1)


def _pairs_of_legs(n: int, animal: int) -> int:
    group = next(i for i, group in enumerate(LEG_GROUPS, 1) if tuple(LEGS)[animal] in group)
    return sum(2 * group for _ in range(n))


def _corners(n: int, shape: int) -> int:
    """The Greek or Latin stem of the name counts the corners."""
    stems = {"tri": 3, "squ": 4, "pen": 5, "hex": 6, "oct": 8}
    return n * stems[tuple(SIDES)[shape][:3]]


class GeneralFacts(Facts):
    """`KNOW MONTH DAYS 3,apr?`: three Aprils have 90 days."""

    name, domain = "general_facts", "non_reasoning_qa"
    keyword, alias, kind = "KNOW", "FACTS", "fact"
    rules = (
        Rule("the lengths of the months", "MONTH", "DAYS", "A machine makes {0} toys on every day of the month '{1}' of the year 2023. How many toys is that?",
             _of(MONTHS), lambda n, m: n * DAYS_IN[m], lambda n, m: n * calendar.monthrange(2023, m + 1)[1], "{0}*DAYS={answer}",
             ("length of the month", "number of days in the month", "days in a month", "days of the month", "lengths of the months"), _named(MONTHS)),
        Rule("a week has seven days", "WEEK", "WEEKS", "How many days are {0} weeks and {1} days?", pair(0, 6), lambda n, k: 7 * n + k,
             lambda n, k: len(calendar.day_name) * n + k, "7*{0}+{1}={answer}", ("seven days in a week", "7 days in a week", "a week has 7 days")),
        Rule("an hour has sixty minutes", "HOUR", "MINUTES", "How many minutes are {0} hours and {1} minutes?", pair(0, 59), lambda n, k: 60 * n + k,
             lambda n, k: sum(60 for _ in range(n)) + k, "60*{0}+{1}={answer}", ("sixty minutes in an hour", "60 minutes in an hour", "an hour has 60 minutes")),
        Rule("a day has twenty-four hours", "DAY", "HOURS", "How many hours are {0} days and {1} hours?", pair(0, 23), lambda n, k: 24 * n + k,
             lambda n, k: sum(2 * 12 for _ in range(n)) + k, "24*{0}+{1}={answer}", ("24 hours in a day", "a day has 24 hours", "twenty-four hours in a day")),
        Rule("the atomic numbers of the elements", "ATOM", "PROTONS", "How many protons do {0} atoms of the element with the symbol '{1}' (written in lower case) have?",
             _of(ELEMENTS), lambda n, z: n * (z + 1), lambda n, z: n * tuple(NUMBERS.values())[z], "{0}*PROTONS={answer}",
             ("atomic number", "atomic numbers", "atomic numbers of the elements"), _named(ELEMENTS)),
        Rule("the order of the alphabet", "ALPHABET", "PLACE", "Add {0} to the place of the letter '{1}' in the English alphabet (a has place 1). What is the sum?",
             _of(string.ascii_lowercase), lambda n, k: n + k + 1, lambda n, k: n + ord(string.ascii_lowercase[k]) - 96, "{0}+PLACE={answer}",
             ("alphabetical order", "order of the alphabet", "position in the alphabet", "place in the alphabet"), _named(string.ascii_lowercase)),
        Rule("a dozen is twelve", "DOZEN", "EGGS", "How many eggs are {0} dozen eggs and {1} more?", pair(0, 11), lambda n, k: 12 * n + k,
             lambda n, k: len(range(0, 12 * n + k)), "12*{0}+{1}={answer}", ("a dozen is 12", "twelve in a dozen", "12 in a dozen", "dozen equals 12")),
        Rule("the numbers of legs of animals", "LEGS", "FEET", "How many legs do {0} animals of the kind '{1}' have in all, if none has lost one?",
             _of(tuple(LEGS)), lambda n, a: n * tuple(LEGS.values())[a], _pairs_of_legs, "{0}*LEGS={answer}",
             ("number of legs", "numbers of legs"), _named(tuple(LEGS))),
        Rule("the numbers of sides of polygons", "SIDES", "EDGES", "How many sides do {0} separate figures of the kind '{1}' have in all?",
             _of(tuple(SIDES)), lambda n, s: n * tuple(SIDES.values())[s], _corners, "{0}*SIDES={answer}", ("number of sides", "numbers of sides"), _named(tuple(SIDES))),
        Rule("the values of the coins of the United States", "COINS", "CENTS", "How many cents are {0} pieces of the kind '{1}' worth in the money of the United States?",
             _of(tuple(CENTS)), lambda n, c: n * tuple(CENTS.values())[c], lambda n, c: n * 100 // (20, 10, 4, 1)[c], "{0}*CENTS={answer}",
             ("value of the coin", "values of the coins", "value of a nickel", "value of a dime", "value of a quarter"), _named(tuple(CENTS))),
        Rule("a kilometre has a thousand metres", "KILO", "METRES", "How many metres are {0} kilometres and {1} metres?", pair(0, 99), lambda n, k: 1000 * n + k,
             lambda n, k: int(f"{n}{k:03}"), "1000*{0}+{1}={answer}", ("1000 metres in a kilometre", "1000 meters in a kilometer", "kilo means thousand", "a kilometre is 1000 metres")),
    )  # fmt: skip


FAMILY = GeneralFacts()
