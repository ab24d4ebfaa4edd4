"""The features of highest NRN at each checkpoint: how far the sets of two checkpoints agree, and what is replaced."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.typing import ArrayLike

from mechprobe.statistics import Interval


def top_sets(values: Float[ndarray, "d_sae checkpoint"], alive: Bool[ndarray, " d_sae"], top: int) -> list[list[int]]:
    """The ``top`` live features of highest value at each checkpoint, best first; ties go to the lower feature.

    Example:
        >>> top_sets(np.array([[0.9, 0.1], [0.5, 0.8], [0.7, 0.7]]), np.ones(3, bool), 2)
        [[0, 2], [1, 2]]
    """
    ids = np.flatnonzero(alive & np.isfinite(values).all(axis=1))
    order = np.argsort(-values[ids], axis=0, kind="stable")[:top]
    return [ids[column].tolist() for column in order.T]


def overlap_matrix(sets: Sequence[Sequence[int]], size: int) -> Float[ndarray, "checkpoint checkpoint"]:
    """|A ∩ B| / size for every two sets (``size`` 50 in arXiv 2604.25011)."""
    members = [set(items) for items in sets]
    return np.array([[len(a & b) / size for b in members] for a in members])


def jaccard_matrix(sets: Sequence[Sequence[int]]) -> Float[ndarray, "checkpoint checkpoint"]:
    """|A ∩ B| / |A ∪ B| for every two sets; 1 for two empty ones."""
    members = [set(items) for items in sets]
    return np.array([[len(a & b) / len(a | b) if a | b else 1.0 for b in members] for a in members])


def churn(sets: Sequence[Sequence[int]], size: int) -> list[float]:
    """Share of each checkpoint's set that the next one does not have, one value less than checkpoints."""
    matrix = overlap_matrix(sets, size)
    return [1.0 - float(matrix[index, index + 1]) for index in range(len(sets) - 1)]


def chance_overlap(top: int, n_alive: int) -> float:
    """Expected |A ∩ B| / top of two random sets of ``top`` among ``n_alive`` features: top / n_alive."""
    return min(1.0, top / n_alive) if n_alive else float("nan")


def adjacent_overlaps(values: Float[ndarray, "d_sae checkpoint"], top: int) -> Float[ndarray, " pair"]:
    """|A ∩ B| / top of neighboring checkpoints, over the rows given."""
    sets = top_sets(values, np.ones(len(values), dtype=bool), top)
    size = min(top, len(sets[0])) if sets else top
    return np.array([len(set(a) & set(b)) / max(1, size) for a, b in pairwise(sets)])


def interval(value: float, draws: Float[ndarray, " draw"], n: int) -> Interval:
    """A value with the middle 95 % of its bootstrap draws; NaN draws are left out."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return Interval(float(value), float("nan"), float("nan"), n)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(float(value), float(low), float(high), n)


@dataclass(frozen=True)
class SeedSpread:
    """The same numbers from dictionaries of several seeds: what depends on training, and not on the models.

    A handful of seeds has no quantiles, so the ends are the smallest and the largest; NaN for one seed, which says nothing of
    others.

    Attributes:
        mean: Over the seeds, cell by cell.
        low: Smallest.
        high: Largest.
        n: Seeds.
    """

    mean: Float[ndarray, "*cell"]
    low: Float[ndarray, "*cell"]
    high: Float[ndarray, "*cell"]
    n: int

    def at(self, *cell: int) -> Interval:
        """One cell; the interval is from the smallest to the largest of the seeds."""
        return Interval(float(self.mean[cell]), float(self.low[cell]), float(self.high[cell]), self.n)


def over_seeds(values: Sequence[ArrayLike]) -> SeedSpread:
    """`SeedSpread` of the numbers of each seed.

    Example:
        >>> over_seeds([[0.25, 1.0], [0.75, 1.0]]).at(0)
        Interval(value=0.5, low=0.25, high=0.75, n=2)
    """
    stacked = np.array([np.asarray(value, dtype=np.float64) for value in values])
    if len(stacked) == 1:
        nothing = np.full_like(stacked[0], np.nan)
        return SeedSpread(stacked[0], nothing, nothing.copy(), 1)
    return SeedSpread(stacked.mean(axis=0), stacked.min(axis=0), stacked.max(axis=0), len(stacked))
