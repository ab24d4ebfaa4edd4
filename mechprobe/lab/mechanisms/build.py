"""The phases of a mechanisms lab: item sets, base, the arms ``sft`` and ``rl``, and the null."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.evals.skills import SkillItem
from mechprobe.lab.items import Document
from mechprobe.lab.mechanisms.language import (
    CONTESTED,
    CONTROL,
    FORCED,
    ITEM_SEED,
    SKILLS,
    TRAINED,
    VOCABULARY,
    documents,
    draw_items,
)
from mechprobe.lab.mechanisms.recipe import MechanismsRecipe
from mechprobe.lab.phases import Lab
from mechprobe.lab.recipe import GrpoConfig, SftConfig, TrainingConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from mechprobe.lab.weights import Frozen

NULL = "null"
"""The arm that is trained on the ops of the control skill alone."""


@dataclass(frozen=True)
class MechanismsItems:
    """Disjoint item sets of a mechanisms lab."""

    eval: dict[str, list[SkillItem]]
    """Held-out items by skill, with the contested ops of the skill. Pre-training never sees their prompts."""
    posttrain: list[SkillItem]
    """Items of the trained skill for SFT and RL, with careful traces."""
    null: list[SkillItem]
    """Items of the trained skill with the ops of the control skill."""
    corpus: list[tuple[str, str, str]]
    """Id, skill and prompt of the prompts for the activation cache, with all ops; shuffled."""

    @property
    def withheld(self) -> frozenset[str]:
        """Prompts of the held-out items."""
        return frozenset(item.prompt for items in self.eval.values() for item in items)


def build_items(recipe: MechanismsRecipe) -> MechanismsItems:
    """Draw the item sets of a recipe."""
    held_out = {name: draw_items(name, recipe.n_eval, use="eval") for name in SKILLS}
    taken = {item.prompt for items in held_out.values() for item in items}
    posttrain = draw_items(TRAINED, recipe.n_posttrain, use="posttrain", exclude=taken)
    null = draw_items(TRAINED, recipe.n_null, use="posttrain", contested=CONTROL, exclude=taken)
    taken |= {item.prompt for item in (*posttrain, *null)}
    corpus = [
        (item.id, name, item.prompt)
        for name in SKILLS
        for item in draw_items(name, recipe.n_corpus, use="corpus", contested=CONTESTED + CONTROL, exclude=taken)
    ]
    random.Random(f"corpus/{ITEM_SEED}").shuffle(corpus)
    return MechanismsItems(held_out, posttrain, null, corpus)


class MechanismsLab(Lab[MechanismsRecipe, MechanismsItems]):
    """The lab with several readings."""

    shared_settings = ("n_eval", "n_threads")
    base_settings = ("model", "pretrain", "enforce_gates")
    arm_settings = ("n_posttrain", "n_null", "trained_blocks")

    def __init__(self, recipe: MechanismsRecipe, folder: Path, seed: int) -> None:
        from mechprobe.lab.tokenizer import build_tokenizer

        super().__init__(recipe, build_items(recipe), folder, seed, build_tokenizer(VOCABULARY))

    @property
    def training(self) -> TrainingConfig:
        """Settings of the pre-training."""
        return self.recipe.pretrain

    def arms(self) -> list[str]:
        """SFT, RL, and the null."""
        return ["sft", "rl", NULL]

    def documents(self, seed: int) -> Iterator[Document]:
        """Documents of all skills with careful and careless readings."""
        return documents(self.recipe.pretrain.p_careful, withheld=self.items.withheld, seed=seed)

    def check_base(self, model: "LlamaForCausalLM") -> dict[str, Any]:
        """Accuracy of the base, without and with a forced beginning of the response, and the gates on it."""
        from mechprobe.lab.mechanisms.measure import base_gates, measure

        direct = measure(model, self.tokenizer, self.items.eval)
        forced = {name: measure(model, self.tokenizer, self.items.eval, forced=name) for name in FORCED}
        return {
            "gates": base_gates(direct, forced),
            "direct": {skill: found.to_json() for skill, found in direct.items()},
            "forced": {name: {s: f.to_json() for s, f in found.items()} for name, found in forced.items()},
        }

    def trainer(self, arm: str) -> tuple[Callable[..., Any], list[SkillItem], GrpoConfig | SftConfig]:
        """GRPO for ``rl`` and the null, and supervised fine-tuning on careful traces."""
        from mechprobe.lab.posttrain import train_grpo, train_sft

        if arm == "sft":
            return train_sft, self.items.posttrain, self.recipe.sft
        if arm == "rl":
            return train_grpo, self.items.posttrain, self.recipe.rl
        return train_grpo, self.items.null, self.recipe.null

    def frozen(self) -> "Frozen":
        """Everything but the first blocks."""
        trained = tuple(f"model.layers.{block}." for block in range(self.recipe.trained_blocks))
        return lambda name: not name.startswith(trained)

    def results(self) -> dict[str, Any]:
        """Accuracy per model and skill, ceilings, gates and curves."""
        from mechprobe.lab.mechanisms.measure import measure_lab

        return measure_lab(self.recipe, self.folder, self.items.eval, self.tokenizer, self.frozen())

    def run_files(self) -> dict[str, str]:
        """``run.toml``, and ``null.toml`` for the null."""
        from mechprobe.lab.mechanisms.run_files import run_files

        return run_files(self.recipe)

    def counts(self) -> dict[str, int]:
        """Numbers of items of each kind."""
        items = self.items
        return {
            "eval_items_per_skill": self.recipe.n_eval,
            "posttrain_items": len(items.posttrain),
            "null_items": len(items.null),
            "corpus_prompts": len(items.corpus),
        }
