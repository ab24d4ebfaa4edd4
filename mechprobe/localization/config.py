"""Settings of the localize stage."""

from pydantic import Field

from mechprobe.config import Comparison


class LocalizeConfig(Comparison):
    """Settings of ``mechprobe localize``."""

    sites: tuple[str, ...] | str = "all"
    """Sites to patch, or ``all``. The site behind the last block is chosen only where it is named here."""
    n_per_task: int | None = Field(default=64, ge=1)
    """Samples of each task, from the top of its file; None takes all."""
    min_share: float = 0.5
    """Share of the gain that both ceilings of a site must reach for edits of both models to be judged there."""
    batch_size: int = Field(default=512, ge=1)
    """Prompts generated at a time."""
