"""The features of highest NRN at each checkpoint: how far the sets of two checkpoints agree, and how they vary over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.statistics import Interval


def top_sets(values: Float[ndarray, "d_sae checkpoint"], alive: Bool[ndarray, " d_sae"], top: int) -> list[list[int]]:
    """The ``top`` live features of highest value at each checkpoint, best first; ties are ordered by index.

    Example:
        >>> top_sets(np.array([[0.9, 0.1], [0.5, 0.8], [0.7, 0.7]]), np.ones(3, bool), 2)
        [[0, 2], [1, 2]]
    """
    ids = np.flatnonzero(alive & np.isfinite(values).all(axis=1))
    order = np.argsort(-values[ids], axis=0, kind="stable")[:top]
    return [ids[column].tolist() for column in order.T]


def overlap_matrix(sets: Sequence[Sequence[int]], size: int) -> Float[ndarray, "checkpoint checkpoint"]:
    """|A ∩ B| / size for every two sets (``size`` is 50 in arXiv 2604.25011)."""
    members = [set(items) for items in sets]
    return np.array([[len(a & b) / size for b in members] for a in members])


def jaccard_matrix(sets: Sequence[Sequence[int]]) -> Float[ndarray, "checkpoint checkpoint"]:
    """|A ∩ B| / |A ∪ B| for every two sets; 1 for two empty sets."""
    members = [set(items) for items in sets]
    return np.array([[len(a & b) / len(a | b) if a | b else 1.0 for b in members] for a in members])


def churn(sets: Sequence[Sequence[int]], size: int) -> list[float]:
    """Share of each checkpoint's set that the next one lacks; one value for every two neighbors."""
    matrix = overlap_matrix(sets, size)
    return [1.0 - float(matrix[index, index + 1]) for index in range(len(sets) - 1)]


def chance_overlap(top: int, n_alive: int) -> float:
    """Expected |A ∩ B| / top of two random sets of ``top`` among ``n_alive`` features: top / n_alive."""
    return min(1.0, top / n_alive) if n_alive else float("nan")


def adjacent_overlaps(values: Float[ndarray, "d_sae checkpoint"], top: int) -> Float[ndarray, " pair"]:
    """|A ∩ B| / top of neighboring checkpoints, over all given rows."""
    sets = top_sets(values, np.ones(len(values), dtype=bool), top)
    size = min(top, len(sets[0])) if sets else top
    return np.array([len(set(a) & set(b)) / max(1, size) for a, b in pairwise(sets)])


def interval(value: float, draws: Float[ndarray, " draw"], n: int) -> Interval:
    """A value with the middle 95 % of its finite bootstrap draws; NaN ends if no draw is finite."""
    finite = draws[np.isfinite(draws)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high), n)


@dataclass(frozen=True)
class SeedSpread:
    """Numbers from dictionaries of several seeds: their spread comes from training and not from the models.

    A few seeds have no useful quantiles, so the ends are the smallest and the largest value of the ``n`` seeds, cell by
    cell. They are NaN for one seed.
    """

    mean: Float[ndarray, "*cell"]
    low: Float[ndarray, "*cell"]
    high: Float[ndarray, "*cell"]
    n: int

    def at(self, *cell: int) -> Interval:
        """One cell, with the smallest and the largest value of the seeds as its interval."""
        return Interval(float(self.mean[cell]), float(self.low[cell]), float(self.high[cell]), self.n)

    def to_dict(self) -> dict[str, Any]:
        """The JSON value."""
        return {"mean": self.mean.tolist(), "low": self.low.tolist(), "high": self.high.tolist(), "n": self.n}


def over_seeds(values: Sequence[Any]) -> SeedSpread:
    """`SeedSpread` of the numbers of each seed, arrays or nested sequences of one shape.

    Example:
        >>> over_seeds([[0.25, 1.0], [0.75, 1.0]]).at(0)
        Interval(value=0.5, low=0.25, high=0.75, n=2)
    """
    stacked = np.array([np.asarray(value, dtype=np.float64) for value in values])
    if len(stacked) == 1:
        missing = np.full_like(stacked[0], np.nan)
        return SeedSpread(stacked[0], missing, missing.copy(), 1)
    return SeedSpread(stacked.mean(axis=0), stacked.min(axis=0), stacked.max(axis=0), len(stacked))
