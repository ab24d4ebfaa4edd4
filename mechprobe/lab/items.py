"""Item sets (held-out items, post-training and corpus prompts, prompts withheld), and the pre-training documents."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mechprobe.evals.skills import SKILLS, SkillItem, split
from mechprobe.evals.skills.families import single_facts
from mechprobe.evals.skills.item import ANSWER_MARKER, direct_response, item_id, worked_response
from mechprobe.evals.skills.registry import marker
from mechprobe.lab.recipe import TRAINED_SKILL, PretrainConfig, Recipe

ITEM_SEED = 20_260
"""Seed of every item set; the seed of a build changes the models but not the items."""


@dataclass(frozen=True)
class ItemSets:
    """Disjoint item sets of a lab."""

    eval: dict[str, list[SkillItem]]
    """Held-out items by skill."""
    posttrain: list[SkillItem]
    """Items of the trained skill for SFT and RL, with traces in the style of pre-training."""
    posttrain_off_policy: list[SkillItem]
    """The same items with off-policy traces (SO/CHECK)."""
    corpus: list[tuple[str, str, str]]
    """Id, skill and prompt of the prompts for the activation cache; shuffled, so that every prefix covers all skills."""
    withheld: frozenset[str]
    """Prompts that pre-training never sees: all held-out items except every second chain of facts."""


def build_items(recipe: Recipe) -> ItemSets:
    """Draw the item sets of a recipe.

    Facts are few. Half of the held-out chains of facts are withheld from pre-training, to test whether the model can chain
    two known facts. The other half may appear there, to test recall. The corpus also contains the single facts.
    """
    held_out: dict[str, list[SkillItem]] = {}
    posttrain: dict[str, list[SkillItem]] = {}
    corpus: list[tuple[str, str, str]] = []
    for name, skill in SKILLS.items():
        sizes = {"eval": recipe.n_eval, "posttrain": recipe.n_posttrain if name == TRAINED_SKILL else 0}
        sizes["corpus"] = min(recipe.n_corpus, skill.capacity - sum(sizes.values()))
        sets = split(name, sizes, seed=ITEM_SEED, rendering=recipe.rendering)
        held_out[name], posttrain[name] = sets["eval"], sets["posttrain"]
        corpus += [(item.id, name, item.prompt) for item in sets["corpus"]]
    corpus += [(item_id("fact_retrieval", p), "fact_retrieval", p) for p, _ in single_facts()[: recipe.n_corpus]]
    withheld = {item.prompt for name in SKILLS for item in held_out[name] if name != "fact_retrieval"}
    withheld |= {item.prompt for item in held_out["fact_retrieval"][::2]}
    random.Random(f"corpus/{ITEM_SEED}").shuffle(corpus)
    before = {"eval": recipe.n_eval, "posttrain": recipe.n_posttrain}
    off_policy = split(TRAINED_SKILL, before, seed=ITEM_SEED, rendering="compact-off-policy")["posttrain"]
    return ItemSets(held_out, posttrain[TRAINED_SKILL], off_policy, corpus, frozenset(withheld))


class Document(NamedTuple):
    """A prompt and a response, which may be wrong."""

    prompt: str
    response: str


def documents(config: PretrainConfig, *, rendering: str, withheld: frozenset[str], seed: int) -> Iterator[Document]:
    """Generate an infinite stream of documents that never contains a prompt in ``withheld``.

    They are by two authors: one answers directly and is often wrong, the other works first and is careful.
    """
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
        response = direct_response(answer)
        if worked:
            response = worked_response(marker(name, rendering), skill.steps(problem), answer)
        assert ANSWER_MARKER in response
        yield Document(prompt, response)
