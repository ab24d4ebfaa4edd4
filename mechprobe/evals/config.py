"""Settings of the evaluate stage."""

from pydantic import Field

from mechprobe.config import FrozenConfig


class EvaluateConfig(FrozenConfig):
    """Settings of ``mechprobe evaluate``."""

    n_per_task: int | None = Field(default=None, ge=1)
    """Samples of each task, from the top of its file; None takes all."""
    batch_size: int = Field(default=512, ge=1)
    """Prompts generated at a time."""
    base: str = "base"
    """The model that the others are compared with."""
    force_prefix: str = ""
    """A forced beginning of the response whose effect on ``base`` is printed as a baseline; empty for none."""
