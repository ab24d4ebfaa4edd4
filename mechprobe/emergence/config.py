"""Settings of ``mechprobe emergence``."""

from typing import Literal

from pydantic import Field

from mechprobe.config import FrozenConfig

Layout = Literal["arms", "together"]


class TrajectoryThresholds(FrozenConfig):
    """When a feature counts as changed, and when its change counts as begun. Kept in every result that uses them."""

    min_change: float = Field(default=0.2, gt=0, lt=1)
    """Smallest change of the decoder norm, as a share of its largest, with which a feature is not steady."""
    onset_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the final change that must be there, at a checkpoint and the next, for the change to have begun."""
    specific_nrn: float = Field(default=2 / 3, gt=0.5, lt=1)
    """NRN from which base lacks a feature; one minus it is where the checkpoint lacks it (norms 2 : 1)."""


class EmergenceConfig(FrozenConfig):
    """What is followed over the checkpoints, and how.

    Attributes:
        base: Model before post-training; the first of every dictionary.
        arms: Arm to its checkpoints in order of training; empty takes them from the models' names (``rl@step_000040``
            is a checkpoint of ``rl``, and ``rl`` its last).
        checkpoints: Folder of further models, ``<arm>/step_<n>/``, beside those given by name.
        final_steps: Step of a checkpoint without a step in its name (``rl``); without it checkpoints are evenly spaced.
        site: Place in the models; the cache's only site when None.
        layout: ``together`` trains one dictionary over base and all checkpoints, so that the arms are compared on the
            same features; ``arms`` one over base and the checkpoints of each arm.
        seeds: Seeds of the dictionaries, pairwise ones too; a statement about arms must hold for each of them.
        pairs: Also train base against each checkpoint alone, as arXiv 2604.25011 does, and match by decoder.
        min_cosine: Decoder cosine from which a feature of another dictionary counts as found again.
        top: Size of the sets of highest NRN that are compared between checkpoints.
        relie: Also measure RelIE, the causal strength (arXiv 2509.05291), of every feature in every model.
        relie_samples: Held-out samples it is measured on.
        relie_steps: Points of the integration path.
        relie_source: Take only responses of this source (``rl@0.0``); None takes every held-out response.
        max_rows: Rows of the store that densities and latent scaling are computed from; None takes all.
        draws: Bootstrap draws behind each interval, of features for the curves and of prompts for RelIE.
        thresholds: When a feature changed.
        seed: Of the bootstrap, and the first seed of the dictionaries.
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
