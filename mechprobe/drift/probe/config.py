"""Settings of ``mechprobe probe``."""

from typing import Literal

from pydantic import Field

from mechprobe.config import FrozenConfig

Position = Literal["last", "mean"]


class LinearConfig(FrozenConfig):
    """Settings of the linear probes.

    Attributes:
        items: Most items that the probes read, drawn evenly from the cells; 0 leaves the probes out.
        sites: Sites such as ``resid_post.2``; empty takes every block.
        positions: ``last`` reads the last token of the prompt, ``mean`` the mean over its tokens.
        c: Inverse strength of the L2 penalty of the logistic regression, on standardized residuals.
        folds: Parts of the items; each is tested by a probe that was fitted on the others.
        batch_size: Prompts in one forward pass.
    """

    items: int = Field(default=1000, ge=0)
    sites: tuple[str, ...] = ()
    positions: tuple[Position, ...] = Field(default=("last",), min_length=1)
    c: float = Field(default=0.1, gt=0)
    folds: int = Field(default=5, ge=2)
    batch_size: int = Field(default=64, ge=1)


class ProbeConfig(FrozenConfig):
    """Settings of ``mechprobe probe``.

    Attributes:
        base: Name of the model before post-training.
        trained: Tasks that post-training saw; the transferability index compares the others with them.
        final_steps: Model → training step, for models without a step in their name, as in ``[emergence]``.
        delta: Smallest fall below base that counts as a collapse, as a share of the distance between chance and 1.
        draws: Bootstrap draws of every interval.
        linear: Linear probes of skill and domain.
        near: Models similar enough to share encoder slots under the ``swap`` read-out of a dictionary; None means all.
        seed: Seed of every random draw.
    """

    base: str = "base"
    trained: tuple[str, ...] = ()
    final_steps: dict[str, int] = Field(default_factory=dict)
    delta: float = Field(default=0.05, ge=0, lt=1)
    draws: int = Field(default=2000, ge=100)
    linear: LinearConfig = LinearConfig()
    near: tuple[str, ...] | None = None
    seed: int = Field(default=0, ge=0)
