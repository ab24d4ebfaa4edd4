"""Settings of the report."""

from typing import Literal

from pydantic import Field

from mechprobe.config import FrozenConfig

Axis = Literal["steps", "tokens"]
"""Unit of the axis of the timeline."""


class ReportConfig(FrozenConfig):
    """What a report shows."""

    question: str = (
        "Which features did post-training add, keep or remove, and which of them cause generalization when they are "
        "removed from the tuned model or added to the base model?"
    )
    """Heading of the page."""
    n_features: int = Field(default=12, ge=0)
    """Number of selected features whose examples are shown, and number of other features."""
    axis: Axis = "steps"
    """Axis of the timeline: optimizer steps, or the tokens that `mechprobe posttrain` recorded at every checkpoint."""
