"""Settings of the select stage."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mechprobe.config import Comparison
from mechprobe.errors import ConfigError
from mechprobe.records import BASE_AT_MOST, TUNED_AT_LEAST
from mechprobe.selection.rules import depends_on_tasks
from mechprobe.types import ReadoutMode

Ranking = Literal["joint", "score", "ig", "relie"]

Attribution = Literal["ig", "relie"]

TOGETHER = 64
"""Samples that are padded to the same width. How many of them share a forward pass changes no bit."""
MAX_SETS = 1000
"""Largest number of matched random sets. Every further set reuses features, so the sets match worse and worse."""


class SelectConfig(Comparison):
    """Settings of ``mechprobe select``."""

    tasks: tuple[str, ...] | None = None
    """Tasks that select; None means every task that is not in ``trained``."""
    min_gained: int = Field(default=4, ge=0)
    """Smallest number of samples in G_t (selection half) with which a task selects. Tasks with fewer are reported."""
    base_at_most: float = Field(default=BASE_AT_MOST, ge=0, le=1)
    """Largest share of right responses of base on a gained sample. One greedy response has a share of 0 or 1."""
    tuned_at_least: float = Field(default=TUNED_AT_LEAST, ge=0, le=1)
    """Smallest share of right responses of the tuned model on a gained sample."""
    threshold: float = Field(default=0.2, gt=0, lt=1)
    """Share of a task's maximum above which a feature counts for that task."""
    rule: str = "top50"
    """Specification of the features to select: top50, top:N, agnostic, rule:..., file:..., ids:... or random:N@SEED."""
    ranking: Ranking | None = None
    """Values that rank: ``ig`` (integrated gradients), ``joint`` (J), ``score`` (arXiv 2604.25011) or ``relie``. None takes ``ig``
    where the rule ranks features. Features that are named outright need no ranking; None takes ``joint`` for them, which needs
    neither gradients nor gained samples."""
    also: tuple[Attribution, ...] = ()
    """Further rankings by attribution to compute, for ``intervene --ranking`` and ``intervene.compare``."""
    readout: ReadoutMode = "swap"
    """Read-out of f^tuned and f^base in the Score and in integrated gradients."""
    positions: Literal["all", "prompt", "response"] = "all"
    """Token positions that are pooled and whose features attribution changes. Special tokens are always left out."""
    pooling: Literal["mean", "max"] = "mean"
    """Pooling over the positions of a sample in Score and J. Attribution sums over positions."""
    target: Literal["response", "answer"] = "response"
    """Right answer whose log-probability ``ig`` and ``relie`` attribute: the tuned model's own response, which the scorer
    accepted, or the sample's ``answer`` directly after the prompt."""
    steps: int = Field(default=16, ge=1)
    """Points of the path of ``ig`` and ``relie``. ``completeness_gap`` in the result measures their error."""
    n_bootstrap: int = Field(default=1000, ge=0)
    """Bootstrap draws of the samples of every G_t, for the features' frequencies; 0 skips them."""
    stability_thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.2, 0.3)
    """Thresholds at which the size of the task-agnostic set is reported."""
    n_controls: int = Field(default=99, ge=0, le=MAX_SETS)
    """Number of matched random sets, for edits of one model and again for transplants."""
    max_samples: int = Field(default=256, ge=1)
    """Samples of G_t that are read, per task."""
    batch_size: int = Field(default=64, ge=1)
    """Most sequences in one forward pass; it does not change the result. At most 64 share a pass, and fewer where they are long."""
    seed: int = Field(default=0, ge=0)
    """Seed of the split into halves, the random sets and the bootstrap."""

    @property
    def ranked_by(self) -> Ranking:
        """The ranking, with None resolved by the rule."""
        return self.ranking or ("ig" if depends_on_tasks(self.rule) else "joint")

    @model_validator(mode="after")
    def _check_shares(self) -> "SelectConfig":
        """Reject shares under which a sample would be gained without a gain."""
        if self.base_at_most >= self.tuned_at_least:
            raise ConfigError(
                f"select.base_at_most is {self.base_at_most:g} and select.tuned_at_least {self.tuned_at_least:g}, so a sample could "
                "be gained without a higher share of right responses; set the first below the second."
            )
        return self
