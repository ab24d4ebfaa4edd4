"""Settings of ``mechprobe features`` and of its validation by nulls and further seeds."""

from typing import Literal

from pydantic import Field

from mechprobe.config import FrozenConfig
from mechprobe.dictionary.config import QualityConfig

FinalNorm = Literal["scale", "none"]
NullKind = Literal["identical", "shuffled-labels", "disjoint-halves"]


class ClassThresholds(FrozenConfig):
    """When some models have a feature and others lack it. Every result that depends on the thresholds contains them."""

    absent_below: float = Field(default=0.5, gt=0, lt=1)
    """A model lacks a feature when its decoder norm is below this share of the largest one. The norms are L1 norms, with each
    model's activations divided by its scale; in raw units a model of half the residual norm would seem to lack everything."""
    nu_error_max: float = Field(default=0.2, gt=0)
    """Largest nu on the reconstruction error at which absence is confirmed."""
    nu_reconstruction_max: float = Field(default=0.5, gt=0)
    """Largest nu on the reconstruction at which absence is confirmed."""
    dead_density: float = Field(default=0.0, ge=0, lt=1)
    """A feature is dead when it is active on at most this share of the rows under the joint read-out."""


class FeaturesConfig(QualityConfig):
    """Settings of ``mechprobe features``."""

    base: str = "base"
    """Name of the model that the others are compared with."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows that the table is computed on, from the start of the store, whose samples are in random order; None takes all."""
    thresholds: ClassThresholds = ClassThresholds()
    bootstrap_groups: int = Field(default=50, ge=2)
    """Groups of sequences that the bootstrap of the class counts draws."""
    bootstrap_draws: int = Field(default=1000, ge=0)
    """Bootstrap draws behind the intervals of the class counts; 0 gives no intervals."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap."""
    n_examples: int = Field(default=5, ge=1, le=64)
    """Contexts of highest activation per feature shown."""
    n_shown: int = Field(default=8, ge=0)
    """Features shown per ranking; the rankings are NRN and decoder shift of each tuned model."""
    context_before: int = Field(default=16, ge=0)
    """Tokens shown before the token of highest activation."""
    context_after: int = Field(default=6, ge=0)
    """Tokens shown after it."""
    n_quantiles: int = Field(default=4, ge=0, le=32)
    """Quantiles of a feature's activation from which random contexts are drawn; 0 draws none."""
    n_per_quantile: int = Field(default=2, ge=1, le=64)
    """Random contexts per quantile."""
    quantile_rows: int | None = Field(default=65536, ge=1)
    """Rows, from the start of the store, from which random contexts are drawn; None takes all."""
    quantile_seed: int = Field(default=0, ge=0)
    """Seed of the random contexts."""
    n_promoted: int = Field(default=8, ge=0, le=256)
    """Tokens shown that a feature's decoder promotes through each model's unembedding, and as many that it suppresses."""
    final_norm: FinalNorm = "scale"
    """``scale`` passes the decoder through the final norm with a fixed scale; ``none`` leaves the norm out."""


class NullsConfig(FrozenConfig):
    """Settings of ``mechprobe features --null`` and ``--seeds``."""

    n_tokens: int | None = Field(default=None, ge=1)
    """Training tokens of each dictionary; None takes those of the run's crosscoder."""
    shared_init: bool | None = None
    """Whether the decoders of all models start equal; None takes the choice of the run's crosscoder. With equal starts, the
    models of ``identical`` stay equal to the last bit, so that null can only reveal an error in the code; with unequal starts
    it is a test."""
    min_cosine: float = Field(default=0.7, gt=0, le=1)
    """Smallest cosine of the decoders at which a feature of one dictionary counts as found again in another."""
    p_min: float = Field(default=0.05, gt=0, lt=1)
    """``shuffled-labels`` fails when the p-value of equal class counts is below this."""
    seed: int = Field(default=0, ge=0)
    """Seed of the shuffled labels. The dictionaries take the seeds that follow the seed of the run's crosscoder."""
