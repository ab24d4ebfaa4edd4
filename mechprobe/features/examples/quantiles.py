"""Random rows from every quantile of a feature's activation, which a list of the highest activations does not show.

One pass keeps a uniform random sample of the rows on which a feature is active: those with the lowest priority, a seeded hash
of feature and row (bottom-k sampling; Cohen and Kaplan, PODC 2007). The sample depends on the rows alone and not on batches, and
the samples of disjoint rows merge into the sample of their union. Cut at its quantiles, it is a random sample of each quantile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.collect import RowStore, row_batches
from sae_training import Crosscoder

POOL_ROWS = 1024
"""Rows kept per feature. Where more are active, the edge of a quantile has a standard error of at most 1.6 % of the rows."""


@dataclass(frozen=True)
class Quantile:
    """One quantile of a feature's activation, from ``low`` to ``high`` as shares of the active rows.

    Its activations go from ``smallest`` to ``largest``, and its ``rows`` are in random order.
    """

    low: float
    high: float
    smallest: float
    largest: float
    rows: tuple[int, ...]


@dataclass
class RandomRows:
    """For each of some features, a uniform random sample of at most ``size`` of the rows on which it is active.

    ``n_rows`` rows were read, and each feature is active on ``n_active`` of them. A kept entry has the ``index`` of its feature
    in ``features``, its ``row``, its activation ``value``, and its hash ``priority``. Entries are sorted by index and priority.
    """

    features: tuple[int, ...]
    size: int
    seed: int
    n_rows: int
    n_active: Int[ndarray, " feature"]
    index: Int[ndarray, " entry"]
    row: Int[ndarray, " entry"]
    value: Float[ndarray, " entry"]
    priority: ndarray

    @classmethod
    def empty(cls, features: Sequence[int], *, seed: int = 0, size: int = POOL_ROWS) -> "RandomRows":
        """A sample without rows."""
        counts, none = np.zeros(len(features), dtype=np.int64), np.zeros(0, dtype=np.int64)
        return cls(tuple(features), size, seed, 0, counts, none, none, np.zeros(0), np.zeros(0, dtype=np.uint64))

    def update(self, acts: Float[ndarray, "batch feature"], rows: Int[ndarray, " batch"] | int) -> None:
        """Add the activations of the features on these ``rows``, or on consecutive rows from a first one on."""
        self.n_rows += len(acts)
        row, index = np.nonzero(acts > 0)
        value, row = acts[row, index].astype(np.float64), row + rows if isinstance(rows, int) else rows[row]
        self.n_active = self.n_active + np.bincount(index, minlength=len(self.features))
        self._add(index, row, value, self._priority(index, row))

    def merge(self, other: "RandomRows") -> "RandomRows":
        """The sample over the rows of both; the rows must be disjoint, and features, size and seed the same."""
        if (self.features, self.size, self.seed) != (other.features, other.size, other.seed):
            raise ValueError("samples of different features, sizes or seeds cannot merge")
        merged = replace(self, n_rows=self.n_rows + other.n_rows, n_active=self.n_active + other.n_active)
        merged._add(other.index, other.row, other.value, other.priority)
        return merged

    def quantiles(self, feature: int, n: int) -> list[Quantile]:
        """The ``n`` quantiles of a feature, lowest activations first; fewer where fewer rows are kept.

        Their numbers of active rows differ by at most one. Rows of equal activation are ordered by row, so each row is in one
        quantile.
        """
        place = self._places[feature]
        kept = slice(*np.searchsorted(self.index, (place, place + 1)))
        row, value, priority = self.row[kept], self.value[kept], self.priority[kept]
        order = np.lexsort((row, value))
        found, n = [], min(n, len(order))
        for number, part in enumerate(np.array_split(order, n) if n else []):
            drawn = part[np.argsort(priority[part], kind="stable")]
            smallest, largest = float(value[part[0]]), float(value[part[-1]])
            found.append(Quantile(number / n, (number + 1) / n, smallest, largest, tuple(row[drawn].tolist())))
        return found

    @cached_property
    def _places(self) -> dict[int, int]:
        """Index of every feature in ``features``."""
        return {feature: place for place, feature in enumerate(self.features)}

    def _priority(self, index: Int[ndarray, " entry"], row: Int[ndarray, " entry"]) -> ndarray:
        feature = np.asarray(self.features, dtype=np.uint64)
        seed = _mixed(np.asarray([self.seed], dtype=np.uint64))
        return _mixed(row.astype(np.uint64) ^ _mixed(feature ^ seed)[index])

    def _add(self, index: ndarray, row: ndarray, value: ndarray, priority: ndarray) -> None:
        index, row = np.concatenate([self.index, index]), np.concatenate([self.row, row])
        value, priority = np.concatenate([self.value, value]), np.concatenate([self.priority, priority])
        order = np.lexsort((row, priority, index))
        ordered = index[order]
        first = np.searchsorted(ordered, np.arange(len(self.features)))
        keep = order[np.arange(len(order)) - first[ordered] < self.size]
        self.index, self.row, self.value, self.priority = index[keep], row[keep], value[keep], priority[keep]


@torch.no_grad()
def collect_random_rows(
    crosscoder: Crosscoder, store: RowStore, features: Sequence[int], config: FeaturesConfig, *, size: int = POOL_ROWS
) -> RandomRows:
    """Sample ``size`` rows of some features under the joint read-out, from the first ``config.quantile_rows`` of a store.

    The sequences of a store are in random order, so its first rows are a random part of it.
    """
    sample = RandomRows.empty(features, seed=config.quantile_seed, size=size)
    limits = [store.n_rows, *(n for n in (config.max_rows, config.quantile_rows) if n is not None)]
    for rows, x in row_batches(store, config, groups=[range(min(limits))], label="random contexts"):
        acts = crosscoder.encode(x.to(crosscoder.device))[:, list(features)]
        sample.update(acts.float().cpu().numpy(), rows)
    return sample


def _mixed(value: ndarray) -> ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on unsigned 64-bit integers."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
