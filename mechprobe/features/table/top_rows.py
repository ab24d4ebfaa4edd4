"""The rows with the highest activation of every latent, kept in one pass; two pools merge into one."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.features.table.sums import ActiveEntries


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
        able = value >= self._entry_value(int(latent.max()) + 1 if len(latent) else 0)[latent]
        latent = torch.cat([self.latent, latent[able]])
        row = torch.cat([self.row, row[able]])
        value = torch.cat([self.value, value[able]])
        order = torch.argsort(row, stable=True)
        order = order[torch.argsort(value[order], descending=True, stable=True)]
        order = order[torch.argsort(latent[order], stable=True)]
        latent, row, value = latent[order], row[order], value[order]
        keep = _place_in_latent(latent) < self.n
        self.latent, self.row, self.value = latent[keep], row[keep], value[keep]

    def _entry_value(self, n_latents: int) -> Float[Tensor, " d_sae"]:
        """For each latent the value that a new row must reach: that of its last place, 0 while places are free."""
        n_latents = max([n_latents, *(self.latent[-1:] + 1).tolist()])
        needed = torch.zeros(n_latents)
        last = _place_in_latent(self.latent) == self.n - 1
        needed[self.latent[last]] = self.value[last]
        return needed

    def of(self, latent: int) -> list[tuple[int, float]]:
        """``(row, value)`` of one latent, highest first."""
        mask = self.latent == latent
        return list(zip(self.row[mask].tolist(), self.value[mask].tolist(), strict=True))


def _place_in_latent(latent: Int[Tensor, " entry"]) -> Int[Tensor, " entry"]:
    """Place of each entry among those of its latent, where the latents are sorted."""
    counts = torch.bincount(latent)
    starts = torch.cumsum(counts, 0) - counts
    return torch.arange(len(latent)) - starts[latent]
