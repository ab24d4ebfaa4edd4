"""The two models that a run compares."""

from mechprobe.config import FrozenConfig


class Comparison(FrozenConfig):
    """The base model, the tuned model whose generalization is explained, and what is known of their training.

    The settings of every stage that compares two models on tasks derive from it.
    """

    base: str = "base"
    """Name of the model before post-training."""
    tuned: str = "rl"
    """Name of the model after post-training whose generalization is explained."""
    near: tuple[str, ...] | None = None
    """Models similar enough to share encoder slots under the ``swap`` read-out; None means all models."""
    trained: tuple[str, ...] = ()
    """Tasks that post-training saw. They are measured, but neither select features nor enter pooled effects and verdicts."""
