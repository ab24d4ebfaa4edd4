"""Settings of the features stage."""

from typing import Literal

from pydantic import Field

from mechprobe.config import FrozenConfig
from mechprobe.dictionary.config import QualityGate
from mechprobe.types import ReadoutMode

FinalNorm = Literal["scale", "none"]
NullKind = Literal["identical", "shuffled-labels", "disjoint-halves"]


class ClassThresholds(FrozenConfig):
    """When a latent belongs to some models and not to others. Kept in every result that uses them."""

    absent_below: float = Field(default=0.5, gt=0, lt=1)
    """A model lacks a latent when its decoder norm (L1, each model's activations divided by its scale) is below this share
    of the largest one. In own units, a model of half the residual norm would seem to lack everything."""
    nu_error_max: float = Field(default=0.2, gt=0)
    """Largest nu on the reconstruction error with which absence counts as confirmed."""
    nu_reconstruction_max: float = Field(default=0.5, gt=0)
    """Largest nu on the reconstruction with which absence counts as confirmed."""
    dead_density: float = Field(default=0.0, ge=0, lt=1)
    """A latent is dead when the joint read-out is above zero on at most this share of the rows."""


class FeaturesConfig(FrozenConfig):
    """Settings of ``mechprobe features``."""

    site: str | None = None
    """Site of the store, for example ``resid_post.2``; None takes the only one."""
    base: str = "base"
    """Name of the model that the tuned ones are compared with."""
    readout: ReadoutMode = "swap"
    """How one model's activation is read through the joint encoder; see `mechprobe.dictionary.readout`."""
    near: tuple[str, ...] | None = None
    """Models near enough to share encoder slots under ``swap``; None means all."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows the table is computed from, from the top of the store (whose samples lie in random order); None takes all."""
    batch_rows: int = Field(default=2048, ge=1)
    """Rows encoded at a time."""
    thresholds: ClassThresholds = ClassThresholds()
    bootstrap_groups: int = Field(default=50, ge=2)
    """Groups of sequences whose sums are kept apart for the intervals of the class counts."""
    bootstrap_draws: int = Field(default=1000, ge=0)
    """Bootstrap draws behind these intervals; 0 leaves them out."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap."""
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


class NullsConfig(FrozenConfig):
    """Settings of ``mechprobe features --null`` and ``--seeds``."""

    n_tokens: int | None = Field(default=None, ge=1)
    """Tokens that each dictionary is trained on; None takes as many as the run's crosscoder had."""
    shared_init: bool | None = None
    """Whether the models' decoders start in common; None takes the start of the run's crosscoder. With a common start
    the models of ``identical`` stay equal to the last bit, so that null can only show an error; without it, it is a test."""
    min_cosine: float = Field(default=0.7, gt=0, le=1)
    """Cosine of the decoders from which a feature of one dictionary counts as found again in another."""
    p_min: float = Field(default=0.05, gt=0, lt=1)
    """``shuffled-labels`` fails below this p-value of equal class counts."""
    seed: int = Field(default=0, ge=0)
    """Of the labels that are shuffled. Dictionaries take the seeds after that of the run's crosscoder."""
