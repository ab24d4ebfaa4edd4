"""People who swap what they hold."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_SWAPS = (2, 3, 4, 6, 8, 10)
N_PEOPLE = (3, 3, 4, 4, 5, 5)
"""Swaps and people, by level."""
PEOPLE = {"a": "Ann", "b": "Ben", "c": "Cleo", "d": "Dan", "e": "Eva"}
THINGS = ("key", "cup", "pen", "hat", "map", "fan", "jar", "box", "toy", "bag", "rug", "net")


class Held(NamedTuple):
    """The thing of every person, the pairs that swap, and the person who is asked about."""

    things: tuple[str, ...]
    swaps: tuple[str, ...]
    person: str


class Handover(Family):
    """`HAND key,cup,pen;ab,bc;c?`: person a holds the first thing; after every swap, what both hold."""

    name, skill, domain = "handover", "simulation", "non_reasoning_qa"
    keyword, alias = "HAND", "PASS"
    answer_form = "word"
    max_answer_chars = 3
    templates = (
        "{holdings} {told} What does {person} hold at the end?",
        "{holdings} {told} Which thing is {person} left with?",
        "At a party, people exchange things. {holdings} {told} What does {person} take home?",
        "Read this story. {holdings} {told} Now name the thing that is in the hands of {person}.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Swaps and people."""
        return {"swaps": N_SWAPS[level - 1], "people": N_PEOPLE[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Held:
        """Draw things and swaps; the person who is asked about swaps at least once."""
        people = list(PEOPLE)[: N_PEOPLE[level - 1]]
        swaps = tuple("".join(sorted(rng.sample(people, 2))) for _ in range(N_SWAPS[level - 1]))
        return Held(tuple(rng.sample(THINGS, len(people))), swaps, rng.choice(sorted(set("".join(swaps)))))

    def level_of(self, problem: Held) -> int:
        """From the number of swaps."""
        level = rung(N_SWAPS, len(problem.swaps))
        return level if level and len(problem.things) == N_PEOPLE[level - 1] else 0

    def compact(self, problem: Held) -> str:
        """Write the question, e.g. `HAND key,cup,pen;ab,bc;c?`."""
        return f"HAND {','.join(problem.things)};{''.join(problem.swaps)};{problem.person}?"

    def fields(self, problem: Held) -> dict[str, object]:
        """The story in words."""
        *first, last = [f"{name} has the {thing}" for name, thing in zip(PEOPLE.values(), problem.things, strict=False)]
        told = [f"{PEOPLE[x]} and {PEOPLE[y]} swap what they hold." for x, y in problem.swaps]
        told = [told[0], *(f"Then {sentence}" for sentence in told[1:])]
        return {"holdings": f"{', '.join(first)} and {last}.", "told": " ".join(told), "person": PEOPLE[problem.person]}

    def answer(self, problem: Held) -> str:
        """Follow all things forwards."""
        holds = dict(zip(PEOPLE, problem.things, strict=False))
        for x, y in problem.swaps:
            holds[x], holds[y] = holds[y], holds[x]
        return holds[problem.person]

    def verify(self, problem: Held) -> str:
        """Follow the thing of the person backwards to its first holder."""
        holder = problem.person
        for pair in reversed(problem.swaps):
            if holder in pair:
                holder = pair.replace(holder, "")
        return problem.things[list(PEOPLE).index(holder)]

    def steps(self, problem: Held) -> tuple[str, ...]:
        """Write what both hold after every swap, e.g. `a=cup,b=key`, `b=pen,c=key`."""
        holds, steps = dict(zip(PEOPLE, problem.things, strict=False)), []
        for x, y in problem.swaps:
            holds[x], holds[y] = holds[y], holds[x]
            steps.append(f"{x}={holds[x]},{y}={holds[y]}")
        return tuple(steps)

    def guesses(self, problem: Held) -> tuple[str, ...]:
        """All things in the story."""
        return problem.things


FAMILY = Handover()
