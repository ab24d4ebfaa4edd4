"""Settings of the localize stage."""

from pydantic import Field

from mechprobe.config import FrozenConfig


class LocalizeConfig(FrozenConfig):
    """Settings of ``mechprobe localize``."""

    base: str = "base"
    """The model before post-training."""
    tuned: str = "rl"
    """The model whose change is located."""
    sites: tuple[str, ...] | str = "all"
    """Sites to patch, or ``all``."""
    trained: tuple[str, ...] = ()
    """Tasks that post-training saw: measured, and left out of the shares and the choice."""
    n_per_task: int | None = Field(default=64, ge=1)
    """Samples of each task, from the top of its file; None takes all."""
    min_share: float = 0.5
    """A site is called able to tell when both shares of the gain reach this."""
    batch_size: int = Field(default=512, ge=1)
    """Prompts generated at a time."""
