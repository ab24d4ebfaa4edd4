"""Settings of ``mechprobe weights``."""

from pydantic import Field

from mechprobe.config import FrozenConfig


class WeightsConfig(FrozenConfig):
    """Settings of ``mechprobe weights``."""

    base: str = "base"
    """Name of the model before post-training."""
    top_k: int = Field(default=16, ge=1)
    """Size of the top singular subspaces that are compared; a smaller matrix has its own smaller side."""
    exact_up_to: int = Field(default=1024, ge=1)
    """Largest smaller side of a matrix whose singular values are computed exactly; beyond it they are estimated."""
    null_draws: int = Field(default=3, ge=1)
    """Random updates beside each update, for matrices whose smaller side is at most 512; larger ones have one."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random draw."""
