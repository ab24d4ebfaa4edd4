"""Settings of ``mechprobe probe``."""

from pydantic import Field

from mechprobe.config import FrozenConfig


class ProbeConfig(FrozenConfig):
    """Settings of ``mechprobe probe``."""

    base: str = "base"
    """Name of the model before post-training."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random draw."""
