"""Random contexts from every part of a feature's range: what a list of the highest activations never shows.

Of the rows on which a feature is above zero a uniform random sample is kept in one pass: the rows with the lowest
priority, a seeded hash of feature and row (bottom-k sampling, Cohen and Kaplan, PODC 2007). The sample depends on the
rows alone, never on batches, and two samples over disjoint rows merge into the sample over their union. Cut at its
quantiles it is a random sample of each quantile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.features.config import FeaturesConfig
from mechprobe.features.rows import RowStore, row_batches
from sae_training import Crosscoder

POOL_ROWS = 1024
"""Rows kept of each feature; where more are active, a quantile's edge is known to within 1.6 % of its rows (1 s.e.)."""


@dataclass(frozen=True)
class Quantile:
    """One part of a feature's range.

    Attributes:
        low: Lower edge, as a share of the active rows.
        high: Upper edge.
        smallest: Smallest activation in it.
        largest: Largest.
        rows: Its rows in random order.
    """

    low: float
    high: float
    smallest: float
    largest: float
    rows: tuple[int, ...]


@dataclass
class RandomRows:
    """For each of some features a uniform random sample of the rows on which it is above zero.

    Attributes:
        features: Ids of the features.
        size: Most rows kept of each.
        seed: Of the sample.
        n_rows: Rows read.
        n_active: How many rows each was above zero on.
        place: Of each kept entry, the place of its feature in ``features``.
        row: Its row.
        value: Its activation.
        priority: Its hash; entries are sorted by place, then by priority.
    """

    features: tuple[int, ...]
    size: int
    seed: int
    n_rows: int
    n_active: Int[ndarray, " feature"]
    place: Int[ndarray, " entry"]
    row: Int[ndarray, " entry"]
    value: Float[ndarray, " entry"]
    priority: ndarray

    @classmethod
    def empty(cls, features: Sequence[int], *, seed: int = 0, size: int = POOL_ROWS) -> "RandomRows":
        """A sample of no rows."""
        whole = np.zeros(0, dtype=np.int64)
        counts = np.zeros(len(features), dtype=np.int64)
        return cls(tuple(features), size, seed, 0, counts, whole, whole, np.zeros(0), np.zeros(0, dtype=np.uint64))

    def update(self, acts: Float[ndarray, "batch feature"], first_row: int) -> None:
        """Take in the activations of the features on consecutive rows from ``first_row`` on."""
        self.n_rows += len(acts)
        row, place = np.nonzero(acts > 0)
        value, row = acts[row, place].astype(np.float64), row + first_row
        self.n_active = self.n_active + np.bincount(place, minlength=len(self.features))
        self._take(place, row, value, self._priority(place, row))

    def merge(self, other: "RandomRows") -> "RandomRows":
        """The sample over the rows of both, which must be disjoint and of the same features, size and seed."""
        if (self.features, self.size, self.seed) != (other.features, other.size, other.seed):
            raise ValueError("samples of other features, sizes or seeds cannot merge")
        parts = (self.place, self.row, self.value, self.priority)
        n_rows, n_active = self.n_rows + other.n_rows, self.n_active + other.n_active
        merged = RandomRows(self.features, self.size, self.seed, n_rows, n_active, *parts)
        merged._take(other.place, other.row, other.value, other.priority)
        return merged

    def quantiles(self, feature: int, n: int) -> list[Quantile]:
        """``n`` parts with equally many active rows (to one), lowest activations first; fewer where fewer rows are kept.

        Ties in activation are cut by row, so every row is in one part.
        """
        kept = self.place == self.features.index(feature)
        row, value, priority = self.row[kept], self.value[kept], self.priority[kept]
        order = np.lexsort((row, value))
        found, n = [], min(n, len(order))
        for index, part in enumerate(np.array_split(order, n) if n else []):
            drawn = part[np.argsort(priority[part], kind="stable")]
            smallest, largest = float(value[part[0]]), float(value[part[-1]])
            found.append(Quantile(index / n, (index + 1) / n, smallest, largest, tuple(row[drawn].tolist())))
        return found

    def _priority(self, place: Int[ndarray, " entry"], row: Int[ndarray, " entry"]) -> ndarray:
        feature = np.asarray(self.features, dtype=np.uint64)
        seed = _mixed(np.asarray([self.seed], dtype=np.uint64))
        return _mixed(row.astype(np.uint64) ^ _mixed(feature ^ seed)[place])

    def _take(self, place: ndarray, row: ndarray, value: ndarray, priority: ndarray) -> None:
        place, row = np.concatenate([self.place, place]), np.concatenate([self.row, row])
        value, priority = np.concatenate([self.value, value]), np.concatenate([self.priority, priority])
        order = np.lexsort((row, priority, place))
        ordered = place[order]
        first = np.searchsorted(ordered, np.arange(len(self.features)))
        keep = order[np.arange(len(order)) - first[ordered] < self.size]
        self.place, self.row, self.value, self.priority = place[keep], row[keep], value[keep], priority[keep]


@torch.no_grad()
def collect_random_rows(
    crosscoder: Crosscoder, store: RowStore, features: Sequence[int], config: FeaturesConfig
) -> RandomRows:
    """Sample the rows of some features under the joint read-out, from the first ``config.quantile_rows`` of a store.

    Samples lie in random order in a store, so its first rows are themselves a random part of it. Memory does not
    depend on the number of rows.
    """
    sample = RandomRows.empty(features, seed=config.quantile_seed)
    limits = [store.n_rows, *(n for n in (config.max_rows, config.quantile_rows) if n is not None)]
    for start, x in row_batches(store, config, groups=[range(min(limits))], label="random contexts"):
        acts = crosscoder.encode(x.to(crosscoder.device))[:, list(features)]
        sample.update(acts.float().cpu().numpy(), start)
    return sample


def _mixed(value: ndarray) -> ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on unsigned 64-bit integers."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
