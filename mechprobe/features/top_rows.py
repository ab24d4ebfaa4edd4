"""The rows with the highest activation of every latent, kept in one pass; two pools merge into one."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.features.sums import ActiveEntries


@dataclass
class TopRows:
    """For every latent its ``n`` rows of highest activation above zero, sorted by latent, then by falling value.

    Ties go to the earlier row, so that the result does not depend on how the rows were cut into batches.
    """

    n: int
    latent: Int[Tensor, " entry"]
    row: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]

    @classmethod
    def empty(cls, n: int) -> "TopRows":
        """A pool of no rows."""
        return cls(n, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))

    def update(self, active: ActiveEntries, first_row: int) -> None:
        """Take in the active entries of a batch whose first row is ``first_row`` of the store."""
        self._take(active.latent.cpu(), active.row.cpu() + first_row, active.value.float().cpu())

    def merge(self, other: "TopRows") -> "TopRows":
        """The pool over the rows of both."""
        merged = TopRows(self.n, self.latent, self.row, self.value)
        merged._take(other.latent, other.row, other.value)
        return merged

    def _take(self, latent: Tensor, row: Tensor, value: Tensor) -> None:
        latent = torch.cat([self.latent, latent])
        row = torch.cat([self.row, row])
        value = torch.cat([self.value, value])
        order = torch.argsort(row, stable=True)
        order = order[torch.argsort(value[order], descending=True, stable=True)]
        order = order[torch.argsort(latent[order], stable=True)]
        latent, row, value = latent[order], row[order], value[order]
        counts = torch.bincount(latent) if len(latent) else torch.zeros(0, dtype=torch.int64)
        starts = torch.cumsum(counts, 0) - counts
        keep = torch.arange(len(latent)) - starts[latent] < self.n
        self.latent, self.row, self.value = latent[keep], row[keep], value[keep]

    def of(self, latent: int) -> list[tuple[int, float]]:
        """``(row, value)`` of one latent, highest first."""
        mask = self.latent == latent
        return list(zip(self.row[mask].tolist(), self.value[mask].tolist(), strict=True))
