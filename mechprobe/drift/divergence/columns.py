"""Names of the sums that are kept, and of the cells that they are kept for. This module needs no torch."""

from typing import Literal

Source = Literal["own", "base", "gold", "prompt"]

CLASSES = ("digits", "operators", "procedural", "special", "other")
BUCKETS = ("prompt", "first", "middle", "answer")

SUMMED = (
    "n", "kl", "kl_reverse", "js", "tv", "top1_agreement", "entropy", "entropy_base", "log_ratio", "k3", "outside",
    "outside_base",
)  # fmt: skip
RANK_BINS = (*range(1, 11), 11, 101, 1001)
"""Lowest rank of each bin; ranks up to 10 have a bin of their own."""
COLUMNS = (*SUMMED, *(f"rank_base_{low}" for low in RANK_BINS), *(f"rank_{low}" for low in RANK_BINS))


def source_of(writer: str, base: str) -> Source:
    """Source of a continuation, from the model that generated it; empty where the prompts file gives it."""
    return "gold" if not writer else "base" if writer == base else "own"


def cell_source(writer: str, base: str, bucket: int) -> Source:
    """Source of a cell: that of its continuation, or ``prompt``."""
    return "prompt" if bucket == BUCKETS.index("prompt") else source_of(writer, base)
