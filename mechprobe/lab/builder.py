"""Building a trained lab: item sets, base, post-trainings, measurements and manifest."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.evals.skills import SkillItem
from mechprobe.files import write_text
from mechprobe.lab.items import Document, ItemSets, build_items, documents
from mechprobe.lab.mechanisms.recipe import NAME as MECHANISMS, MechanismsRecipe, mechanisms_recipe
from mechprobe.lab.phases import Lab
from mechprobe.lab.recipe import GrpoConfig, LabRecipe, Recipe, SftConfig, TrainingConfig, get_recipe
from mechprobe.stage_folder import Stage

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from mechprobe.lab.weights import Frozen


def build(
    recipe: str | LabRecipe,
    out: Path | str,
    *,
    seed: int = 0,
    scale: str = "full",
    base: Path | str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Build a lab in a folder and return its manifest.

    Args:
        recipe: A recipe or its name.
        out: Folder of the lab.
        seed: First pre-training seed. If a gate after pre-training fails, the next seed is tried.
        scale: ``full``, or ``small`` for the same lab in seconds, whose models know nothing.
        base: Base folder of another lab with the same pre-training, which is copied instead of training it again.
        force: Whether to empty the folder of an earlier lab and start again.

    Raises:
        ConfigError: The recipe or the scale is unknown.
        ArtifactError: The folder holds other work, or ``base`` was pre-trained with other settings.
        ModelError: No seed passed the gates after pre-training.
    """
    plan = recipe if isinstance(recipe, LabRecipe) else _recipe(recipe, scale)
    config = {"recipe": plan.model_dump(mode="json"), "seed": seed}
    with Stage.open(Path(out), name="lab", config=config, force=force) as stage:
        return _build(stage, plan, seed, base) if stage.manifest is None else stage.manifest


def _recipe(name: str, scale: str) -> LabRecipe:
    """Look up the recipe of a trained lab."""
    return mechanisms_recipe(scale) if name == MECHANISMS else get_recipe(name, scale)


def _build(stage: Stage, plan: LabRecipe, seed: int, base: Path | str | None) -> dict[str, Any]:
    """Run the unfinished phases and write the manifest."""
    from mechprobe.random_state import isolated_random_state

    with isolated_random_state(seed):
        lab = _lab(plan, stage.folder, seed)
        lab.write_items()
        lab.make_base(None if base is None else Path(base))
        for arm in lab.arms():
            lab.make_arm(arm)
        results = lab.results()
        for name, text in lab.run_files().items():
            write_text(stage.folder / name, text)
    used = results["pretraining"]["seed"]
    return stage.finish(outputs=lab.outputs(), results=results, seed=used, counts=lab.counts())


def _lab(plan: LabRecipe, folder: Path, seed: int) -> Lab[Any, Any]:
    """The phases of a recipe."""
    if isinstance(plan, MechanismsRecipe):
        from mechprobe.lab.mechanisms.build import MechanismsLab

        return MechanismsLab(plan, folder, seed)
    assert isinstance(plan, Recipe), "there are no other trained labs"
    return MarkerLab(plan, folder, seed)


class MarkerLab(Lab[Recipe, ItemSets]):
    """A lab in which pre-training plants a marker that opens careful work."""

    shared_settings = ("rendering", "n_eval", "n_threads")
    base_settings = ("model", "pretrain", "enforce_gates")
    arm_settings = ("n_posttrain", "trained_parts")

    def __init__(self, recipe: Recipe, folder: Path, seed: int) -> None:
        from mechprobe.lab.tokenizer import build_tokenizer

        super().__init__(recipe, build_items(recipe), folder, seed, build_tokenizer())

    @property
    def training(self) -> TrainingConfig:
        """Settings of the pre-training."""
        return self.recipe.pretrain

    def arms(self) -> list[str]:
        """Names of the post-trainings of the recipe."""
        return ["sft", *(["sft_instyle"] if self.recipe.sft_instyle else []), "rl"]

    def documents(self, seed: int) -> Iterator[Document]:
        """Documents of two authors."""
        recipe = self.recipe
        return documents(recipe.pretrain, rendering=recipe.rendering, withheld=self.items.withheld, seed=seed)

    def check_base(self, model: "LlamaForCausalLM") -> dict[str, Any]:
        """Accuracy with and without the forced marker, and the gates on them."""
        from mechprobe.lab.measure import measure, pretraining_gates

        measured = [
            measure(model, self.tokenizer, self.items.eval, rendering=self.recipe.rendering, forced=forced)
            for forced in (False, True)
        ]
        direct, forced = ({s: m.to_json() for s, m in result.items()} for result in measured)
        return {"gates": pretraining_gates(*measured), "direct": direct, "forced_marker": forced}

    def trainer(self, arm: str) -> tuple[Callable[..., Any], list[SkillItem], GrpoConfig | SftConfig]:
        """GRPO for ``rl``, else supervised fine-tuning on traces."""
        from mechprobe.lab.posttrain import train_grpo, train_sft

        if arm == "rl":
            return train_grpo, self.items.posttrain, self.recipe.rl
        config = self.recipe.sft if arm == "sft" else self.recipe.sft_instyle
        assert config is not None, "arms() returns only arms of the recipe"
        traces = self.items.posttrain_off_policy if config.style == "off-policy" else self.items.posttrain
        return train_sft, traces, config

    def frozen(self) -> "Frozen":
        """Embeddings, final norm and unembedding, or nothing."""
        from mechprobe.lab.weights import is_head

        return is_head if self.recipe.head_is_frozen else lambda _name: False

    def results(self) -> dict[str, Any]:
        """Accuracy per model and skill, ceilings, gates and curves."""
        from mechprobe.lab.results import measure_lab

        return measure_lab(self.recipe, self.folder, self.items)

    def run_files(self) -> dict[str, str]:
        """``run.toml``."""
        from mechprobe.lab.run_config import run_config

        return {"run.toml": run_config(self.recipe)}

    def counts(self) -> dict[str, int]:
        """Numbers of items of each kind."""
        n_posttrain, n_corpus = len(self.items.posttrain), len(self.items.corpus)
        return {"eval_items_per_skill": self.recipe.n_eval, "posttrain_items": n_posttrain, "corpus_prompts": n_corpus}
