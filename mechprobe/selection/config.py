"""Settings of the select stage."""

from typing import Annotated, Literal

from pydantic import Field

from mechprobe.comparison import Comparison
from mechprobe.types import ReadoutMode

Ranking = Literal["joint", "score", "ig", "relie"]

Attribution = Literal["ig", "relie"]


class SelectConfig(Comparison):
    """Settings of ``mechprobe select``."""

    tasks: tuple[str, ...] | None = None
    """Tasks whose sets are intersected; None takes every task but ``trained``."""
    min_gained: int = Field(default=4, ge=0)
    """A task with fewer samples in G_t (selection half) is left out, and said so."""
    threshold: float = Field(default=0.2, gt=0, lt=1)
    """Share of a task's maximum above which a feature counts for that task."""
    rule: str = "top50"
    """The selection that is written; see ``mechprobe intervene --features``."""
    ranking: Ranking = "joint"
    """Which values rank: ``joint`` (J), ``score`` (the paper's), ``ig`` (integrated gradients) or ``relie``."""
    also: tuple[Attribution, ...] = ()
    """Rankings by attribution whose values are kept beside, for ``intervene --ranking`` and ``intervene.compare``."""
    readout: ReadoutMode = "swap"
    """Read-out of f^tuned and f^base in the Score and in integrated gradients."""
    positions: Literal["all", "prompt", "response"] = "all"
    """Token positions that are pooled, and whose features attribution moves; special tokens never are."""
    pooling: Literal["mean", "max"] = "mean"
    """How positions of one sample are pooled in Score and J; attribution sums over them."""
    target: Literal["response", "answer"] = "response"
    """The right answer whose log-probability ``ig`` and ``relie`` attribute: the tuned model's own response, which the
    scorer found right, or the sample's ``answer`` put right behind the prompt."""
    steps: int = Field(default=16, ge=1)
    """Points of the path of ``ig`` and ``relie``; ``completeness_gap`` in the result says what they miss."""
    n_bootstrap: int = Field(default=1000, ge=0)
    """Draws of the samples of every G_t behind the features' frequencies; 0 leaves them out."""
    stability_thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.2, 0.3)
    """Thresholds at which the size of the task-agnostic set is told."""
    n_controls: int = Field(default=20, ge=0)
    """Matched random sets."""
    max_samples: int = Field(default=256, ge=1)
    """Samples of G_t that are read, per task."""
    batch_size: int = Field(default=64, ge=1)
    """Sequences at a time."""
    seed: int = Field(default=0, ge=0)
    """Of the halves, the random sets and the bootstrap."""
