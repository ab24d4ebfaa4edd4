"""Pre-training documents by two authors; one answers directly and is often wrong, the other works first and is careful."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from mechprobe.evals.skills import SKILLS
from mechprobe.evals.skills.families import single_facts
from mechprobe.evals.skills.item import ANSWER_MARKER, direct_response, worked_response
from mechprobe.evals.skills.registry import marker
from mechprobe.lab.recipe import PretrainConfig


class Document(NamedTuple):
    """A prompt and a response, which may be wrong."""

    prompt: str
    response: str


def documents(config: PretrainConfig, *, rendering: str, withheld: frozenset[str], seed: int) -> Iterator[Document]:
    """Generate an infinite stream of documents that never contains a prompt in ``withheld``."""
    rng = random.Random(f"documents/{seed}")
    facts = single_facts()
    names = list(SKILLS)
    weights = [config.fact_weight if name == "fact_retrieval" else 1.0 for name in names]
    while True:
        name = rng.choices(names, weights)[0]
        if name == "fact_retrieval" and rng.random() < config.single_fact_share:
            yield Document(*rng.choice(facts))
            continue
        skill = SKILLS[name]
        problem = skill.draw(rng)
        prompt = skill.prompt(problem)
        if prompt in withheld:
            continue
        worked = rng.random() < config.worked_share
        wrong = rng.random() < (config.wrong_worked if worked else config.wrong_direct)
        answer = skill.wrong_answer(problem, rng) if wrong else skill.answer(problem)
        if worked:
            response = worked_response(marker(name, rendering), skill.steps(problem), answer)
        else:
            response = direct_response(answer)
        assert ANSWER_MARKER in response
        yield Document(prompt, response)
