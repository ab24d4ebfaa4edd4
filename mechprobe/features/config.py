"""Settings of the features stage."""

from typing import Literal

from pydantic import Field

from mechprobe.config import FrozenConfig

ReadoutMode = Literal["swap", "joint", "single"]
Ranking = Literal["joint", "score"]
FinalNorm = Literal["scale", "none"]


class ClassThresholds(FrozenConfig):
    """When a latent belongs to some models and not to others. Kept in every result that uses them."""

    absent_below: float = Field(default=0.5, gt=0, lt=1)
    """A model lacks a latent when its decoder norm (L1, own units) is below this share of the largest one."""
    nu_error_max: float = Field(default=0.2, gt=0)
    """Largest nu on the reconstruction error with which absence counts as confirmed."""
    nu_reconstruction_max: float = Field(default=0.5, gt=0)
    """Largest nu on the reconstruction with which absence counts as confirmed."""
    dead_density: float = Field(default=0.0, ge=0, lt=1)
    """A latent is dead when the joint read-out is above zero on at most this share of the rows."""


class QualityGate(FrozenConfig):
    """What a crosscoder must reach on held-out tokens before its features are believed."""

    min_fve: float = Field(default=0.90, le=1)
    """Smallest fraction of variance explained (pooled, about the mean), for every model."""
    min_ce_recovered: float = Field(default=0.80, le=1)
    """Smallest share of cross-entropy recovered, for every model; passed over where no models were given."""
    max_dead_share: float = Field(default=0.95, gt=0, le=1)
    """Largest share of latents that never fire."""


class FeaturesConfig(FrozenConfig):
    """Settings of ``mechprobe features``."""

    site: str | None = None
    """Site of the store, for example ``resid_post.2``; None takes the only one."""
    base: str = "base"
    """Name of the model that the tuned ones are compared with."""
    readout: ReadoutMode = "swap"
    """How one model's activation is read through the joint encoder; see `mechprobe.features.readout`."""
    near: tuple[str, ...] | None = None
    """Models near enough to share encoder slots under ``swap``; None means all."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows the table is computed from, from the top of the store (whose samples lie in random order); None takes all."""
    batch_rows: int = Field(default=1024, ge=1)
    """Rows encoded at a time."""
    thresholds: ClassThresholds = ClassThresholds()
    gate: QualityGate = QualityGate()
    ce_samples: int = Field(default=256, ge=1)
    """Held-out samples whose next-token loss is measured with the reconstruction spliced in."""
    ce_batch: int = Field(default=32, ge=1)
    """Samples in one forward pass."""
    n_examples: int = Field(default=5, ge=1, le=64)
    """Contexts kept for each feature shown."""
    n_shown: int = Field(default=8, ge=0)
    """Features shown for each of the rankings (NRN of each tuned model, shift of the decoder)."""
    context_before: int = Field(default=16, ge=0)
    """Tokens shown before the one with the highest activation."""
    context_after: int = Field(default=6, ge=0)
    """Tokens shown after it."""
    n_quantiles: int = Field(default=4, ge=0, le=32)
    """Parts of a feature's range from which random contexts are drawn, equally many active rows in each; 0 for none."""
    n_per_quantile: int = Field(default=2, ge=1, le=64)
    """Random contexts drawn from each part."""
    quantile_rows: int | None = Field(default=65536, ge=1)
    """Rows, from the top of the store, that random contexts are drawn from; None takes all."""
    quantile_seed: int = Field(default=0, ge=0)
    """Of the random contexts."""
    n_promoted: int = Field(default=8, ge=0, le=256)
    """Tokens shown that a feature's decoder promotes through each model's unembedding, and as many suppressed."""
    final_norm: FinalNorm = "scale"
    """``scale`` takes the decoder through the final norm, its scale held fixed; ``none`` leaves the norm out."""


class SelectConfig(FrozenConfig):
    """Settings of ``mechprobe select``."""

    base: str = "base"
    """The model that is wrong on G_t."""
    tuned: str = "rl"
    """The model that is right on G_t."""
    tasks: tuple[str, ...] | None = None
    """Tasks whose sets are intersected; None takes every task but ``trained``."""
    trained: tuple[str, ...] = ()
    """Tasks that post-training saw; they never select."""
    min_gained: int = 4
    """A task with fewer samples in G_t (selection half) is left out, and said so."""
    threshold: float = 0.2
    """Share of a task's maximum above which a feature counts for that task."""
    rule: str = "top50"
    """The selection that is written; see ``mechprobe intervene --features``."""
    ranking: Ranking = "joint"
    """Which values rank: ``joint`` (J) or ``score`` (the paper's)."""
    readout: ReadoutMode = "swap"
    """Read-out of f^tuned and f^base in the Score."""
    near: tuple[str, ...] | None = None
    """Models near enough to stand in each other's encoder slots under ``swap``; None means all of them."""
    positions: Literal["all", "prompt", "response"] = "all"
    """Token positions that are pooled; special tokens never are."""
    pooling: Literal["mean", "max"] = "mean"
    """How positions of one sample are pooled."""
    n_controls: int = 20
    """Matched random sets."""
    max_samples: int = 256
    """Samples of G_t that are read, per task."""
    batch_size: int = 64
    """Sequences at a time."""
    seed: int = 0
    """Of the halves and the random sets."""
