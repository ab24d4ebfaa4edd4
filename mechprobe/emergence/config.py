"""Settings of ``mechprobe emergence``."""

from typing import Literal

from pydantic import Field

from mechprobe.config import FrozenConfig

Layout = Literal["arms", "together"]


class TrajectoryThresholds(FrozenConfig):
    """When the decoder norm of a feature counts as changed, and when the change counts as begun."""

    min_change: float = Field(default=0.2, gt=0, lt=1)
    """Smallest change of the decoder norm, as a share of its maximum, of a feature that is not steady."""
    onset_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the final change that a checkpoint and the next one must reach for the change to have begun."""
    specific_nrn: float = Field(default=2 / 3, gt=0.5, lt=1)
    """NRN from which base lacks a feature; the checkpoint lacks it below one minus this value (norms 2 : 1)."""


class EmergenceConfig(FrozenConfig):
    """Settings of ``mechprobe emergence``.

    Attributes:
        base: Model before post-training, the first model of every dictionary.
        arms: Arm → its checkpoints in order of training. If empty, the models' names define the arms:
            ``rl@step_000040`` is a checkpoint of ``rl``, and ``rl`` its last one.
        checkpoints: Folder of further models, ``<arm>/step_<n>/``.
        final_steps: Model → optimizer step, for models without a step in their name. For others it is read from the folder of
            the model, if `mechprobe posttrain` or `mechprobe lab` made it. If a step stays unknown, the checkpoints of the arm are
            drawn evenly spaced, and nothing is dated.
        site: Site of the dictionaries; None takes the only site of the store.
        layout: ``together`` trains one dictionary over base and all checkpoints, so that arms are compared on the same
            features. ``arms`` trains one over base and the checkpoints of each arm.
        seeds: Number of seeds of every dictionary. A statement about arms must hold for each of them.
        pairs: Whether to train base against each checkpoint alone, too, as arXiv 2604.25011 does, and to match the
            features by decoder.
        min_cosine: Decoder cosine from which a feature matches one of another dictionary.
        top: Size of the sets of highest NRN that are compared between checkpoints.
        relie: Whether to measure RelIE, the causal strength (arXiv 2509.05291), of every feature in every model.
        relie_samples: Held-out samples for RelIE.
        relie_steps: Points of the integration path.
        relie_source: Source of the responses for RelIE (``rl@0.0``); None takes every held-out response.
        max_rows: Rows of the store for densities and latent scaling; None takes all.
        draws: Bootstrap draws of each interval: of features for the curves, of prompts for RelIE.
        thresholds: When a feature counts as changed.
        seed: Seed of the bootstrap, and first seed of the dictionaries.
    """

    base: str = "base"
    arms: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    checkpoints: str = ""
    final_steps: dict[str, int] = Field(default_factory=dict)
    site: str | None = None
    layout: Layout = "together"
    seeds: int = Field(default=1, ge=1)
    pairs: bool = True
    min_cosine: float = Field(default=0.7, gt=0, le=1)
    top: int = Field(default=50, ge=1)
    relie: bool = True
    relie_samples: int = Field(default=128, ge=1)
    relie_steps: int = Field(default=8, ge=1)
    relie_source: str | None = None
    max_rows: int | None = Field(default=8192, ge=1)
    draws: int = Field(default=1000, ge=100)
    thresholds: TrajectoryThresholds = TrajectoryThresholds()
    seed: int = Field(default=0, ge=0)
