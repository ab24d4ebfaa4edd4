"""Chains of facts about the lab's closed world. Level 1 is the lab's skill `fact_retrieval`."""

import functools
import random
import string
from typing import NamedTuple

from mechprobe.evals.skills.family import Family

N_ENTITIES, N_VALUES = 80, 24
LINKS, ATTRIBUTES = ("BOSS", "PAL"), ("HOME", "FOOD")
WORLD_SEED = "mechprobe world 1"


class Chain(NamedTuple):
    """An entity, and the relations to follow from it: links to other entities, then perhaps an attribute."""

    entity: str
    relations: tuple[str, ...]


@functools.cache
def world() -> dict[tuple[str, str], str]:
    """The facts, `(entity, link) -> another entity` and `(entity, attribute) -> value`; identical in every process."""
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
def sorted_names() -> tuple[list[str], list[str]]:
    """The sorted entities and the sorted values."""
    entities = {entity for entity, _ in world()}
    return sorted(entities), sorted({world()[entity, attribute] for entity in entities for attribute in ATTRIBUTES})


@functools.cache
def _columns() -> dict[str, dict[str, str]]:
    """The facts by relation; checks the chains of `world`."""
    return {r: {e: value for (e, relation), value in world().items() if relation == r} for r in (*LINKS, *ATTRIBUTES)}


class LabWorld(Family):
    """`FACT su PAL HOME?`: the pal of su is go, the home of go is of. Only a model that was trained on the world can know."""

    name, skill, domain = "fact_retrieval", "fact_retrieval", "non_reasoning_qa"
    keyword = "FACT"
    words = (*LINKS, *ATTRIBUTES)
    answer_form = "word"
    max_answer_chars = 2
    templates = (
        "In the world of the lab, what is the {spelled} {entity}?",
        "Name the {spelled} {entity} in the world of the lab.",
        "Recall the facts about the world of the lab: which name is the {spelled} {entity}?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Links before the attribute."""
        return {"links": level}

    def draw(self, rng: random.Random, level: int) -> Chain:
        """Draw an entity, the links and an attribute."""
        entity = rng.choice(sorted_names()[0])
        return Chain(entity, (*(rng.choice(LINKS) for _ in range(level)), rng.choice(ATTRIBUTES)))

    def level_of(self, problem: Chain) -> int:
        """From the number of links."""
        return len(problem.relations) - 1

    def content(self, problem: Chain) -> str:
        """The compact prompt, as in the lab."""
        return self.compact(problem)

    def stream(self, level: int) -> str:
        """The stream of the lab."""
        return f"{self.skill}/symbolic/{level}"

    def compact(self, problem: Chain) -> str:
        """Write the question, e.g. `FACT su PAL HOME?` or, with one fact only, `FACT su PAL?`."""
        return " ".join(("FACT", problem.entity, *problem.relations)) + "?"

    def fields(self, problem: Chain) -> dict[str, object]:
        """The relations in words, the last one first."""
        spelled = " of the ".join(relation.lower() for relation in reversed(problem.relations)) + " of"
        return {"entity": problem.entity, "spelled": spelled}

    def answer(self, problem: Chain) -> str:
        """Look up every fact."""
        return self.steps(problem)[-1]

    def verify(self, problem: Chain) -> str:
        """Follow the chain of all entities at once, relation by relation, and read off this one."""
        reached = {entity: entity for entity in sorted_names()[0]}
        for relation in problem.relations:
            reached = {entity: _columns()[relation][now] for entity, now in reached.items()}
        return reached[problem.entity]

    def steps(self, problem: Chain) -> tuple[str, ...]:
        """Write the entity or value after every fact, e.g. `go`, `of`."""
        found, now = [], problem.entity
        for relation in problem.relations:
            now = world()[now, relation]
            found.append(now)
        return tuple(found)

    def guesses(self, problem: Chain) -> tuple[str, ...]:
        """All values, or all entities where the chain ends with a link."""
        entities, values = sorted_names()
        return tuple(values if problem.relations[-1] in ATTRIBUTES else entities)

    def capacity(self, level: int) -> int:
        """Entities times links times attributes."""
        return N_ENTITIES * len(LINKS) ** level * len(ATTRIBUTES)


FAMILY = LabWorld()
