"""Settings of dip-and-recovery and of ``mechprobe dynamics``."""

from typing import Literal

from pydantic import Field

from mechprobe.config import FrozenConfig


class DynamicsConfig(FrozenConfig):
    """Settings of ``mechprobe dynamics`` and of `mechprobe.dynamics.dip_and_recovery`.

    Attributes:
        alpha: Level of every test; over several curves it is the family-wise level (Holm).
        draws: Simulated curves of each kind without a dip, and permutations of items. The smallest p-value is about 1 / draws, and the
            level of a test is alpha within about √(alpha / draws): 4.3 % to 5.7 % for 1,000.
        resamples: Resampled curves for ``label_share``; 0 leaves it out.
        scale: ``share`` or ``percent``: the unit of published scores. ``auto`` is percent where a score or base is above 1.
        tasks: Tasks of the run; None takes all.
        seed: Seed of every draw.
    """

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    draws: int = Field(default=4000, ge=1000)
    resamples: int = Field(default=200, ge=0)
    scale: Literal["auto", "share", "percent"] = "auto"
    tasks: tuple[str, ...] | None = None
    seed: int = Field(default=0, ge=0)
