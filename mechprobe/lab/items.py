"""Which question goes where: held-out items, post-training prompts, corpus prompts, and what pre-training may see."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mechprobe.evals.skills import SKILLS, SkillItem, split
from mechprobe.evals.skills.fact_retrieval import single_facts
from mechprobe.evals.skills.item import item_id
from mechprobe.lab.recipe import TRAINED_SKILL, Recipe

ITEM_SEED = 20_260
"""Seed of every item set; the seed of a build moves the models, never the questions."""


@dataclass(frozen=True)
class ItemSets:
    """Disjoint question sets of a lab."""

    eval: dict[str, list[SkillItem]]
    """Held-out items by skill."""
    posttrain: list[SkillItem]
    """Items of the trained skill that SFT and RL see; traces in the base's own style."""
    posttrain_off_policy: list[SkillItem]
    """The same items with SO/CHECK traces."""
    corpus: list[tuple[str, str, str]]
    """Id, skill and prompt of the prompts for the activation cache, shuffled: any first part holds all skills."""
    withheld: frozenset[str]
    """Prompts that pre-training never sees: every held-out item but each second fact chain."""


def build_items(recipe: Recipe) -> ItemSets:
    """Draw the sets.

    Facts are few: half of the held-out chains stay out of pre-training (can the model chain two facts it
    knows?), the other half may appear there (does it still recall?). The corpus adds the single facts.
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
