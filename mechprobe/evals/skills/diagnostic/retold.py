"""Summaries of a text in numbered claims, of which one may contradict the text."""

import random
import string
from collections.abc import Mapping
from typing import Any, NamedTuple

from mechprobe.evals.scorers.final_answer import NONE
from mechprobe.evals.skills.diagnostic.worked import CLEAN, ERR, KINDS
from mechprobe.evals.skills.family import Family, rung

N_BOXES = (3, 4, 5, 7, 9, 11)
"""Boxes in the text, by level."""
Claim = tuple[str, int]
"""A box and the coins in it."""


class Retold(NamedTuple):
    """What the text says, what the claims say, the kind of error, and the wrong claim, from 1; 0 without one."""

    text: tuple[Claim, ...]
    claims: tuple[Claim, ...]
    kind: str
    step: int


class RetoldText(Family):
    """`RETOLD a4b7c2:b7a4c3?`: the third claim should be 2; `3:2`.

    Kinds of error: `injected`, a number that stands nowhere in the text; `drift`, the number of another box; `inconsistent`, a
    claim about a box contradicts an earlier, right one.
    """

    name, skill, domain = "retold_text", "diagnostic", "non_reasoning_qa"
    keyword, alias, words = "RETOLD", "SUMMARY", (ERR,)
    kinds = KINDS
    version = 2
    answer_form = "diagnosis"
    max_answer_chars = 4
    ask = "the number of the wrong claim and the right number of coins, as claim:coins (the word none if every claim is right),"
    templates = (
        "Text: {text}\nClaims about the text:\n{claims}\nAt most one claim is wrong. {verdict}",
        "Compare these claims with the text.\n{claims}\nThe text: {text}\nNo more than one claim contradicts it. {verdict}",
        "{text}\nA summary of this text reads:\n{claims}\nFind the claim that is not true to the text, if there is one. {verdict}",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Boxes in the text."""
        return {"boxes": N_BOXES[level - 1]}

    def draw(self, rng: random.Random, level: int, kind: str = "") -> Retold:
        """Draw the text, the order of the claims, and the error, until the kind of error is possible."""
        kind = kind or rng.choice(KINDS)
        while True:
            problem = self._drawn(rng, N_BOXES[level - 1], kind)
            if problem is not None:
                return problem

    def _drawn(self, rng: random.Random, n: int, kind: str) -> Retold | None:
        names = rng.sample(string.ascii_lowercase, n)
        text = tuple((name, rng.randrange(10)) for name in names)
        claims, said = rng.sample(text, len(text)), {coins for _, coins in text}
        place = rng.randrange(len(claims))
        if kind in (CLEAN, "inconsistent") or rng.random() < 0.5:  # so that a repeated box is no sign of an error
            place = rng.randrange(1, len(claims) + 1)
            claims.insert(place, rng.choice(claims[:place]))
        if kind == CLEAN:
            return Retold(text, tuple(claims), CLEAN, 0)
        name, right = claims[place]
        wrong = {"injected": set(range(10)) - said, "drift": said - {right}}.get(kind, set(range(10)) - {right})
        if not wrong or (kind != "inconsistent" and [n for n, _ in claims[:place]].count(name)):
            return None
        claims[place] = name, rng.choice(sorted(wrong))
        return Retold(text, tuple(claims), kind, place + 1)

    def level_of(self, problem: Retold) -> int:
        """From the number of boxes."""
        return rung(N_BOXES, len(problem.text))

    def content(self, problem: Retold) -> str:
        """Text and claims, without what is wrong."""
        return self.compact(problem)

    def compact(self, problem: Retold) -> str:
        """Write the question, e.g. `RETOLD a4b7c2:b7a4c3?`."""
        text, claims = ("".join(f"{name}{n}" for name, n in part) for part in (problem.text, problem.claims))
        return f"RETOLD {text}:{claims}?"

    def fields(self, problem: Retold) -> dict[str, str]:
        """Text and claims in words."""
        claims = (f"Claim {number}: {_sentence('box', name, n)}" for number, (name, n) in enumerate(problem.claims, 1))
        return {
            "text": " ".join(_sentence("Box", name, n) for name, n in problem.text),
            "claims": "\n".join(claims),
            "verdict": "Say in words which claim is wrong, if any.",
        }

    def answer(self, problem: Retold) -> str:
        """The wrong claim as it was drawn, and what the text says."""
        return f"{problem.step}:{dict(problem.text)[problem.claims[problem.step - 1][0]]}" if problem.step else NONE

    def verify(self, problem: Retold) -> str:
        """Search every claim in the text."""
        sentences = {f"{name}{n}" for name, n in problem.text}
        wrong = [i for i, (name, n) in enumerate(problem.claims, 1) if f"{name}{n}" not in sentences]
        if len(wrong) > 1:
            return "more than one wrong claim"
        return next((f"{i}:{n}" for i in wrong for name, n in problem.text if name == problem.claims[i - 1][0]), NONE)

    def steps(self, problem: Retold) -> tuple[str, ...]:
        """Write what the text says to every claim up to the wrong one, then its number, e.g. `b7`, `a4`, `c2`, `ERR 3`."""
        true = dict(problem.text)
        said = (f"{name}{true[name]}" for name, _ in problem.claims[: problem.step or None])
        return (*said, f"{ERR} {problem.step or NONE}")

    def chat_steps(self, problem: Retold) -> str:
        """The verdict in words."""
        return f"Claim {problem.step} is wrong." if problem.step else "No claim is wrong."

    def guesses(self, problem: Retold) -> int:
        """`none`, and every claim with every number of coins."""
        return 1 + 10 * len(problem.claims)

    def guess(self, problem: Retold, rng: random.Random) -> str:
        """Draw one of them."""
        number = rng.randrange(self.guesses(problem))
        return f"{1 + (number - 1) // 10}:{(number - 1) % 10}" if number else NONE

    def extras(self, problem: Retold) -> Mapping[str, Any]:
        """Kind, wrong claim and right number."""
        if not problem.step:
            return {"kind": problem.kind}
        return {"kind": problem.kind, "step": problem.step, "corrected": self.answer(problem).partition(":")[2]}


def _sentence(box: str, name: str, coins: int) -> str:
    return f"{box} {name} holds {coins} coin{'s' if coins != 1 else ''}."


FAMILY = RetoldText()
