"""Numbers as text."""

import math

from mechprobe.drift.weights.result import AgainstNull
from mechprobe.formatting import MISSING, estimate
from mechprobe.statistics import Interval


def interval_text(item: Interval) -> str:
    """``0.153 [0.128, 0.178]``."""
    return estimate(item)


def null_text(item: AgainstNull | None, factor: int = 1) -> str:
    """A number with the range of its null, see `AgainstNull.text`."""
    return MISSING if item is None else item.text(factor)


def digits(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.3g}" if math.isfinite(value) else MISSING


def counted(n: int, noun: str) -> str:
    """A number with its noun: 1 feature, 50 features."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
