"""Settings of the mechanisms lab."""

from mechprobe.errors import ConfigError
from mechprobe.lab.recipe import GrpoConfig, LabRecipe, ModelConfig, SftConfig, TrainingConfig

NAME = "mechanisms"
"""Name of the recipe."""


class MechanismsPretrainConfig(TrainingConfig):
    """Pre-training on documents in which every occurrence of a contested op is careful with the same probability."""

    steps: int = 400
    batch_size: int = 160
    p_careful: float = 0.4
    """Probability of the careful reading, at every occurrence independently."""


class MechanismsRecipe(LabRecipe):
    """All settings of a mechanisms lab but the seed."""

    model: ModelConfig = ModelConfig(n_layers=4)
    pretrain: MechanismsPretrainConfig = MechanismsPretrainConfig()
    sft: SftConfig = SftConfig(style="in-style", lr=1e-4, epochs=2, checkpoints=(8, 16))
    rl: GrpoConfig = GrpoConfig(lr=1e-4, steps=60, max_new_tokens=14, checkpoints=(10, 20))
    null: GrpoConfig = GrpoConfig(lr=1e-4, steps=40, max_new_tokens=14)
    """RL of the null, on the trained skill with the ops of the control skill alone. It stops early, because on the seed with which
    we tuned (0) it leaks to one other skill by step 60 (two: 2 -> 14 %), and at step 40 to none (pooled +1.5 points)."""
    trained_blocks: int = 2
    """Number of blocks, from the first, that post-training changes; all other weights stay fixed."""
    n_posttrain: int = 1024
    """Number of prompts of the trained skill that post-training sees."""
    n_null: int = 512
    """Number of prompts that the null sees."""
    n_corpus: int = 512
    n_threads: int = 1


def mechanisms_recipe(scale: str = "full") -> MechanismsRecipe:
    """The recipe.

    Args:
        scale: ``full``, or ``small`` for a tiny version with every part, for tests.

    Raises:
        ConfigError: The scale is unknown.
    """
    if scale not in ("full", "small"):
        raise ConfigError(f"The lab scale '{scale}' is unknown; give full or small.")
    recipe = MechanismsRecipe(name=NAME)
    return recipe if scale == "full" else _small(recipe)


def _small(recipe: MechanismsRecipe) -> MechanismsRecipe:
    """Shrink the recipe to seconds of training; its models know nothing, and its gates are not enforced."""
    grpo = GrpoConfig(steps=2, n_prompts=4, n_generations=2, max_new_tokens=14, checkpoints=(1,))
    return recipe.replace(
        model=ModelConfig(n_layers=3, d_model=32, n_heads=2, d_mlp=48),
        pretrain=MechanismsPretrainConfig(steps=12, batch_size=32, warmup_steps=2, max_attempts=2),
        sft=recipe.sft.replace(epochs=1, checkpoints=(1,)),
        rl=grpo,
        null=grpo.replace(checkpoints=()),
        n_posttrain=64,
        n_null=32,
        n_eval=16,
        n_corpus=16,
        n_threads=1,
        enforce_gates=False,
    )
