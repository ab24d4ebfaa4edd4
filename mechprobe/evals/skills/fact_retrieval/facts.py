"""A family of questions that each rest on one rule, in pairs: guided, where the prompt names the rule, and unguided."""

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from mechprobe.evals.skills.fact_retrieval.rules import Rule
from mechprobe.evals.skills.family import Family
from mechprobe.evals.skills.item import item_id

BANDS = ((3, 9), (10, 40), (41, 300), (301, 999), (1000, 4000), (4001, 20000))
"""Range of the first number, by level; level 6 lies beyond the five."""


class Fact(NamedTuple):
    """The compact name of a rule, the numbers of the question, and whether the prompt names the rule."""

    rule: str
    numbers: tuple[int, ...]
    guided: bool


class Facts(Family):
    """Application questions with drawn numbers. The level decides the range of the first number."""

    skill = "fact_retrieval"
    answer_form = "integer"
    max_answer_chars = 12
    rules: ClassVar[tuple[Rule, ...]]
    kind: ClassVar[str]
    """What a rule of the domain is called in a chat prompt: theorem, law, rule or fact."""
    templates = (
        "{hint}{question} Name the {kind} on which your answer rests.",
        "{hint}State the {kind} that answers this question, by its name. {question}",
        "{question} {hint}Your reply must say which {kind} you rely on.",
    )

    def __init_subclass__(cls) -> None:
        """Collect the words of the compact rendering: names of the rules, what they answer, and what steps mention."""
        texts = " ".join(f"{rule.word} {rule.asks} {rule.work}" for rule in cls.rules)
        cls.words = tuple(dict.fromkeys(re.findall("[A-Z]+", texts)))

    def knobs(self, level: int) -> dict[str, int]:
        """Range of the first number."""
        low, high = BANDS[level - 1]
        return {"low": low, "high": high}

    def draw(self, rng: random.Random, level: int) -> Fact:
        """Draw a rule, its numbers and the form."""
        rule = rng.choice(self.rules)
        return Fact(rule.word, rule.draw(rng, *BANDS[level - 1]), rng.random() < 0.5)

    def level_of(self, problem: Fact) -> int:
        """From the range of the first number."""
        return next((level for level, (low, high) in enumerate(BANDS, 1) if low <= problem.numbers[0] <= high), 0)

    def rule(self, problem: Fact) -> Rule:
        """The rule on which a question rests."""
        return next(rule for rule in self.rules if rule.word == problem.rule)

    def compact(self, problem: Fact) -> str:
        """Write the question, e.g. `LAW OHM VOLT 3,4?` or, unguided, `LAW VOLT 3,4?`."""
        rule = self.rule(problem)
        named = f" {rule.word}" if problem.guided else ""
        return f"{self.keyword}{named} {rule.asks} {','.join(rule.shown(problem.numbers))}?"

    def fields(self, problem: Fact) -> dict[str, str]:
        """The question, and a hint where the rule is named."""
        rule = self.rule(problem)
        hint = f"Use this {self.kind}: {rule.name}. " if problem.guided else ""
        return {"question": rule.question.format(*rule.shown(problem.numbers)), "hint": hint, "kind": self.kind}

    def answer(self, problem: Fact) -> str:
        """Apply the rule."""
        return str(self.rule(problem).answer(*problem.numbers))

    def verify(self, problem: Fact) -> str:
        """Apply the check of the rule."""
        return str(self.rule(problem).check(*problem.numbers))

    def steps(self, problem: Fact) -> tuple[str, ...]:
        """Name the rule and apply it, e.g. `OHM`, `3*4=12`."""
        rule = self.rule(problem)
        return rule.word, rule.work.format(*problem.numbers, answer=self.answer(problem))

    def chat_steps(self, problem: Fact) -> str:
        """Name the rule and apply it."""
        return f"This rests on: {self.rule(problem).name}.\n{self.steps(problem)[1]}"

    def guesses(self, problem: Fact) -> Sequence[str] | range | int:
        """The numbers from 0 to twice the answer and one, or to its negative."""
        right = self.rule(problem).answer(*problem.numbers)
        return range(2 * right + 2) if right >= 0 else range(2 * right - 1, 1)

    def extras(self, problem: Fact) -> Mapping[str, Any]:
        """The rule, the form, and the id of the pair, which both forms share."""
        rule = self.rule(problem)
        pair = item_id(self.name, json.dumps([problem.rule, problem.numbers]))
        return {"rule": rule.name, "rule_aliases": (*rule.aliases, rule.word), "guided": problem.guided, "pair": pair}
