"""Fact retrieval: a chain of two facts about an invented world."""

from __future__ import annotations

import functools
import random
import string
from typing import NamedTuple

from mechprobe.evals.skills.item import direct_response

N_ENTITIES = 80
N_VALUES = 24
LINKS = ("BOSS", "PAL")
ATTRIBUTES = ("HOME", "FOOD")
WORLD_SEED = "mechprobe world 1"


class Chain(NamedTuple):
    """The attribute of the entity that a link leads to; if `attribute` is None, that entity itself."""

    entity: str
    link: str
    attribute: str | None


@functools.cache
def world() -> dict[tuple[str, str], str]:
    """The facts, `(entity, relation) -> entity or value`; identical in every process.

    A link leads to another entity, an attribute to one of 24 values.
    """
    rng = random.Random(WORLD_SEED)
    names = sorted({x + y for x in string.ascii_lowercase for y in string.ascii_lowercase})
    rng.shuffle(names)
    entities, values = names[:N_ENTITIES], names[N_ENTITIES : N_ENTITIES + N_VALUES]
    facts: dict[tuple[str, str], str] = {}
    for entity in entities:
        for link in LINKS:
            facts[entity, link] = rng.choice([other for other in entities if other != entity])
        for attribute in ATTRIBUTES:
            facts[entity, attribute] = rng.choice(values)
    return facts


@functools.cache
def _sorted_names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sorted entities and the sorted values."""
    facts = world()
    entities = tuple(sorted({entity for entity, _ in facts}))
    return entities, tuple(sorted({facts[e, a] for e in entities for a in ATTRIBUTES}))


class FactRetrieval:
    """`FACT su PAL HOME?` -> `THINK go;of ANS of`: the pal of su is go, the home of go is of."""

    name = "fact_retrieval"
    own_marker = "RECALL"
    capacity = N_ENTITIES * len(LINKS) * len(ATTRIBUTES)

    def draw(self, rng: random.Random) -> Chain:
        """Draw an entity, a link and an attribute."""
        return Chain(rng.choice(_sorted_names()[0]), rng.choice(LINKS), rng.choice(ATTRIBUTES))

    def prompt(self, problem: Chain) -> str:
        """Write the question, e.g. `FACT su PAL HOME?` or, with one fact only, `FACT su PAL?`."""
        return "FACT " + " ".join(part for part in problem if part) + "?"

    def answer(self, problem: Chain) -> str:
        """Look up both facts."""
        middle = world()[problem.entity, problem.link]
        return middle if problem.attribute is None else world()[middle, problem.attribute]

    def steps(self, problem: Chain) -> str:
        """Write the intermediate entity and the answer, e.g. `go;of`."""
        return f"{world()[problem.entity, problem.link]};{self.answer(problem)}"

    def wrong_answer(self, problem: Chain, rng: random.Random) -> str:
        """Draw another entity or another value."""
        entities, values = _sorted_names()
        right = self.answer(problem)
        names = entities if problem.attribute is None else values
        return rng.choice([name for name in names if name != right])


def single_facts() -> list[tuple[str, str]]:
    """Every question about a single fact with its direct response, e.g. `FACT su PAL?` and `ANS go`."""
    skill = FactRetrieval()
    chains = [Chain(entity, relation, None) for entity, relation in sorted(world())]
    return [(skill.prompt(chain), direct_response(skill.answer(chain))) for chain in chains]
