"""Settings of ``mechprobe drift``."""

from pydantic import Field

from mechprobe.config import FrozenConfig


class DriftConfig(FrozenConfig):
    """Settings of ``mechprobe drift``."""

    base: str = "base"
    """Name of the model before post-training."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random draw."""
