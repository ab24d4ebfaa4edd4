"""The rows of highest activation of every feature, collected in one pass; the pools of disjoint rows merge."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.features.table.sums import ActiveEntries


@dataclass
class TopRows:
    """The ``n`` rows of highest activation above zero of every feature, sorted by feature, then by falling activation.

    Of equal activations the earlier row comes first, so the result does not depend on the batches.
    """

    n: int
    feature: Int[Tensor, " entry"]
    row: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]

    @classmethod
    def empty(cls, n: int) -> "TopRows":
        """A pool without rows."""
        return cls(n, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))

    def update(self, active: ActiveEntries, first_row: int) -> None:
        """Add the active entries of a batch that starts at ``first_row`` of the store."""
        self._add(active.feature.cpu(), active.row.cpu() + first_row, active.value.float().cpu())

    def merge(self, other: "TopRows") -> "TopRows":
        """The pool over the rows of both."""
        merged = TopRows(self.n, self.feature, self.row, self.value)
        merged._add(other.feature, other.row, other.value)
        return merged

    def _add(self, feature: Tensor, row: Tensor, value: Tensor) -> None:
        reaches = value >= self._entry_value(int(feature.max()) + 1 if len(feature) else 0)[feature]
        feature = torch.cat([self.feature, feature[reaches]])
        row = torch.cat([self.row, row[reaches]])
        value = torch.cat([self.value, value[reaches]])
        order = torch.argsort(row, stable=True)
        order = order[torch.argsort(value[order], descending=True, stable=True)]
        order = order[torch.argsort(feature[order], stable=True)]
        feature, row, value = feature[order], row[order], value[order]
        keep = _rank_in_feature(feature) < self.n
        self.feature, self.row, self.value = feature[keep], row[keep], value[keep]

    def _entry_value(self, n_features: int) -> Float[Tensor, " d_sae"]:
        """The activation that a new row must reach, by feature: that of the last row kept, 0 while the pool is not full."""
        n_features = max([n_features, *(self.feature[-1:] + 1).tolist()])
        needed = torch.zeros(n_features)
        last = _rank_in_feature(self.feature) == self.n - 1
        needed[self.feature[last]] = self.value[last]
        return needed

    def of(self, feature: int) -> list[tuple[int, float]]:
        """``(row, activation)`` of one feature, highest first."""
        mask = self.feature == feature
        return list(zip(self.row[mask].tolist(), self.value[mask].tolist(), strict=True))


def _rank_in_feature(feature: Int[Tensor, " entry"]) -> Int[Tensor, " entry"]:
    """Rank of each entry among those of its feature; the entries must be sorted by feature."""
    counts = torch.bincount(feature)
    starts = torch.cumsum(counts, 0) - counts
    return torch.arange(len(feature)) - starts[feature]
