"""Cyclic orders that everybody knows, such as that of the weekdays; a held-out family."""

from collections.abc import Callable

from mechprobe.evals.skills.fact_retrieval.facts import BANDS, Fact, Facts
from mechprobe.evals.skills.fact_retrieval.rules import Numbers, Rule, pair

ORDERS: dict[str, tuple[str, ...]] = {
    "WEEKDAYS": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "MONTHS": (
        "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
    ),
    "COMPASS": ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest"),
    "NOTES": ("c", "d", "e", "f", "g", "a", "b"),
    "ZODIAC": (
        "aries", "taurus", "gemini", "cancer", "leo", "virgo", "libra", "scorpio", "sagittarius", "capricorn", "aquarius", "pisces",
    ),
}  # fmt: skip
"""Compact name of a rule → the order, which begins anew at its end."""


def _rule(name: str, word: str, asks: str, question: str, *aliases: str) -> Rule:
    names = ORDERS[word]

    def walk(n: int, place: int) -> int:
        for _ in range(n):
            place = 0 if place + 1 == len(names) else place + 1
        return place

    return Rule(name, word, asks, question, pair(0, len(names) - 1), lambda n, place: (n + place) % len(names), walk,
                f"{{0}}%{len(names)}={{answer}}", aliases, _shown(names))  # fmt: skip


def _shown(names: tuple[str, ...]) -> Callable[[Numbers], tuple[str, ...]]:
    return lambda numbers: (str(numbers[0]), names[numbers[1]])


class Orders(Facts):
    """`ORDER WEEKDAYS LATER 9,monday?`: wednesday."""

    name, domain = "orders", "non_reasoning_qa"
    held_out = True
    keyword, kind = "ORDER", "fact"
    answer_form = "word"
    rules = (
        _rule("the order of the weekdays", "WEEKDAYS", "LATER", "Which weekday is {0} days after a {1}?", "order of the weekdays", "order of the days of the week"),
        _rule("the order of the months", "MONTHS", "AFTER", "Which month is {0} months after {1}?", "order of the months"),
        _rule("the order of the compass points", "COMPASS", "TURN", "Someone faces {1} and makes {0} turns of 45 degrees to the right. Which of the eight points of the compass does the person face?",
              "order of the compass points", "compass rose"),
        _rule("the order of the notes", "NOTES", "HIGHER", "Which note of the scale c, d, e and so on is {0} notes above {1}?", "order of the notes", "musical scale"),
        _rule("the order of the zodiac", "ZODIAC", "SIGN", "Which sign of the zodiac is {0} signs after {1}?", "order of the zodiac", "signs of the zodiac"),
    )  # fmt: skip

    def answer(self, problem: Fact) -> str:
        """The member of the order at the place that the rule gives."""
        return ORDERS[problem.rule][int(super().answer(problem))]

    def verify(self, problem: Fact) -> str:
        """Walk from member to member."""
        return ORDERS[problem.rule][int(super().verify(problem))]

    def guesses(self, problem: Fact) -> tuple[str, ...]:
        """All members of the order."""
        return ORDERS[problem.rule]

    def work(self, problem: Fact) -> int:
        """Members to pass, for a solver that counts on."""
        return problem.numbers[0]

    def capacity(self, level: int) -> int:
        """Numbers times members times two forms."""
        low, high = BANDS[level - 1]
        return (high - low + 1) * sum(map(len, ORDERS.values())) * 2


FAMILY = Orders()
