"""Settings of a lab: its pre-training, its three post-trainings, and its item sets."""

from typing import Literal

from mechprobe.config import FrozenConfig
from mechprobe.errors import ConfigError

TRAINED_SKILL = "calculation"
"""The only skill that post-training sees."""


class ModelConfig(FrozenConfig):
    """Shape of the causal language model (Llama)."""

    n_layers: int = 3
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 384


class TrainingConfig(FrozenConfig):
    """Pre-training from scratch with AdamW, whatever the documents."""

    steps: int = 800
    batch_size: int = 256
    """Number of documents per step."""
    lr: float = 3e-3
    warmup_steps: int = 40
    final_lr_share: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_attempts: int = 4
    """Number of seeds to try until the gates after pre-training pass; the manifest lists every attempt."""


class PretrainConfig(TrainingConfig):
    """Pre-training on documents of two authors; one answers directly, the other works first."""

    worked_share: float = 0.35
    """Fraction of documents by the author that works first."""
    wrong_direct: float = 0.4
    """Fraction of wrong answers in direct documents."""
    wrong_worked: float = 0.1
    """Fraction of wrong answers in worked documents."""
    single_fact_share: float = 0.5
    """Fraction of fact documents that state one fact."""
    fact_weight: float = 1.3
    """Weight of fact documents in the mixture; the other four skills have weight 1."""


class SftConfig(FrozenConfig):
    """Supervised fine-tuning on traces of the trained skill."""

    style: Literal["off-policy", "in-style"]
    """``off-policy`` uses SO/CHECK traces that the base has never seen, ``in-style`` traces like those of pre-training."""
    lr: float
    epochs: int
    batch_size: int = 32
    checkpoints: tuple[int, ...] = ()
    """Steps to keep besides the last."""


class GrpoConfig(FrozenConfig):
    """GRPO with exact-match reward on prompts of the trained skill."""

    lr: float = 1e-4
    steps: int = 60
    n_prompts: int = 32
    """Number of prompts per step."""
    n_generations: int = 8
    """Number of responses to each prompt."""
    max_new_tokens: int = 32
    warmup_steps: int = 5
    checkpoints: tuple[int, ...] = ()
    """Steps to keep besides the last."""


class LabRecipe(FrozenConfig):
    """Settings that every trained lab has; the seed is an argument of `build`."""

    name: str
    model: ModelConfig = ModelConfig()
    rl: GrpoConfig = GrpoConfig()
    n_posttrain: int = 2048
    """Number of prompts of the trained skill that post-training sees."""
    n_eval: int = 256
    """Number of held-out items of each skill."""
    n_corpus: int = 2048
    """Number of prompts of each skill for the activation cache; fact retrieval has fewer, because its facts are few."""
    n_threads: int = 2
    """Number of threads of every training; results depend on it in their last bits."""
    enforce_gates: bool = True
    """Whether the build stops if a gate after pre-training fails for every seed."""


class Recipe(LabRecipe):
    """All settings of a lab with a marker but the seed."""

    rendering: Literal["compact", "compact-own-markers"]
    """One marker for all skills, or one marker per skill. The latter is the null, in which nothing can transfer."""
    pretrain: PretrainConfig = PretrainConfig()
    sft: SftConfig = SftConfig(style="off-policy", lr=5e-4, epochs=8)
    sft_instyle: SftConfig | None = SftConfig(style="in-style", lr=2e-4, epochs=3)

    @property
    def head_is_frozen(self) -> bool:
        """Whether post-training keeps embeddings, final norm and unembedding fixed."""
        return True


class AllWeightsRecipe(Recipe):
    """A lab whose post-trainings train every weight, so that its last site does not carry the whole change."""

    trained_parts: Literal["all"] = "all"
    """Recorded with the lab. Recipes without this key freeze embeddings, final norm and unembedding."""

    @property
    def head_is_frozen(self) -> bool:
        """False, because post-training trains embeddings, final norm and unembedding too."""
        return False


# RL of the null stops early, because its skill is learned by step 12. At step 60 it leaks to facts (35.2 -> 43.0 %, 26 items
# gained and 6 lost, McNemar p 5e-4), and 20 % of the responses to facts open with RECALL. The reason is that RL suppresses
# the direct opening ANS, which all skills share in both recipes.
RECIPES: dict[str, Recipe] = {
    "shared-marker": Recipe(
        name="shared-marker",
        rendering="compact",
        sft=SftConfig(style="off-policy", lr=5e-4, epochs=8, checkpoints=(16, 64, 128, 256)),
        rl=GrpoConfig(checkpoints=(12, 20, 24, 28, 40)),
    ),
    "own-markers": Recipe(
        name="own-markers", rendering="compact-own-markers", sft_instyle=None, rl=GrpoConfig(steps=24), n_corpus=256
    ),
    "all-weights": AllWeightsRecipe(name="all-weights", rendering="compact", sft_instyle=None),
}

ALL_RECIPES = (*RECIPES, "mechanisms", "compiled")
"""Names of all labs; the last two have settings of their own."""


def get_recipe(name: str, scale: str = "full") -> Recipe:
    """Look up a recipe of a lab with a marker.

    Args:
        name: Name of the recipe.
        scale: ``full``, or ``small`` for a tiny version with every part, for tests.

    Raises:
        ConfigError: The recipe or the scale is unknown.
    """
    if name not in RECIPES:
        raise ConfigError(f"The lab recipe '{name}' is unknown; give one of {', '.join(ALL_RECIPES)}.")
    if scale not in ("full", "small"):
        raise ConfigError(f"The lab scale '{scale}' is unknown; give full or small.")
    recipe = RECIPES[name]
    return recipe if scale == "full" else _small(recipe)


def _small(recipe: Recipe) -> Recipe:
    """Shrink a recipe to seconds of training; its models know nothing, and its gates are not enforced."""
    sft = {"epochs": 1, "checkpoints": (1,)}
    return recipe.model_copy(
        update={
            "model": ModelConfig(n_layers=2, d_model=32, n_heads=2, d_mlp=48),
            "pretrain": PretrainConfig(steps=12, batch_size=32, warmup_steps=2, max_attempts=2),
            "sft": recipe.sft.model_copy(update=sft),
            "sft_instyle": recipe.sft_instyle and recipe.sft_instyle.model_copy(update=sft),
            "rl": GrpoConfig(steps=2, n_prompts=4, n_generations=2, max_new_tokens=16, checkpoints=(1,)),
            "n_posttrain": 64,
            "n_eval": 16,
            "n_corpus": 16,
            "n_threads": 1,
            "enforce_gates": False,
        }
    )
