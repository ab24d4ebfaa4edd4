"""Item sets: held-out items, post-training prompts, corpus prompts, and the prompts withheld from pre-training."""

import random
from dataclasses import dataclass

from mechprobe.evals.skills import SKILLS, SkillItem, split
from mechprobe.evals.skills.families import single_facts
from mechprobe.evals.skills.item import item_id
from mechprobe.lab.recipe import TRAINED_SKILL, Recipe

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
