"""Numbers of divergence and of weights for every model, from the finished stages ``drift`` and ``weights``."""

from collections.abc import Mapping
from pathlib import Path

Numbers = dict[str, dict[str, float]]
"""Name → model → number."""


def numbers_of(drift: Path | str | None, weights: Path | str | None, base: str) -> Numbers:
    """The numbers with which the drift of behaviour is correlated; those of a missing stage are left out.

    Raises:
        ArtifactError: A folder is not the finished stage, or compares with another base.
    """
    return {}
