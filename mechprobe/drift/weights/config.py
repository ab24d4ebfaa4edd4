"""Settings of ``mechprobe weights``."""

from pydantic import Field

from mechprobe.config import FrozenConfig


class WeightsConfig(FrozenConfig):
    """Settings of ``mechprobe weights``."""

    base: str = "base"
    """Name of the model before post-training."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random draw."""
