"""The active latents of a batch on a GPU: compressed sparse rows with a size known in advance, and their products."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_training.kernels import products
from sae_training.kernels.selection import Kept


@dataclass(frozen=True)
class Entries:
    """The entries of a batch, in the order of rows and then of latents.

    The host knows the number of places, and only the device knows how many of them are used. Unused places are at the
    end, with column ``d_sae`` and value 0.
    """

    values: Float[Tensor, " entries"]
    rows: Int[Tensor, " entries"]
    columns: Int[Tensor, " entries"]
    row_begin: Int[Tensor, " batch"]
    row_end: Int[Tensor, " batch"]
    d_sae: int

    @cached_property
    def _sorted(self) -> tuple[Int[Tensor, " entries"], Int[Tensor, " entries"]]:
        sorted_columns, order = torch.sort(self.columns, stable=True)
        return sorted_columns, order

    @property
    def order(self) -> Int[Tensor, " entries"]:
        """The order that sorts the entries by latent, then by row; unused places come last."""
        return self._sorted[1]

    @cached_property
    def column_rows(self) -> Int[Tensor, " entries"]:
        """The rows in that order."""
        return self.rows[self.order]

    @cached_property
    def column_offsets(self) -> Int[Tensor, " d_sae_plus_1"]:
        """First entry of each latent in that order, and the end of the last latent."""
        bounds = torch.arange(self.d_sae + 1, dtype=self.columns.dtype, device=self.columns.device)
        return torch.searchsorted(self._sorted[0], bounds)

    def row_places(self, column: int) -> Int[Tensor, " batch"]:
        """First entry of each row whose latent is ``column`` or later."""
        key = self.rows.long() * self.d_sae + self.columns
        unused = self.columns == self.d_sae
        row = torch.arange(self.row_begin.shape[0], device=key.device)
        return torch.searchsorted(torch.where(unused, row.shape[0] * self.d_sae, key), row * self.d_sae + column)


@dataclass(frozen=True)
class TritonActive:
    """The latents from ``first`` up to ``last`` in the entries of a batch.

    Methods take and return values for all entries of the batch. Values outside the block are ignored and returned as 0.
    """

    entries: Entries
    first: int
    last: int
    row_begin: Int[Tensor, " batch"]
    row_end: Int[Tensor, " batch"]

    @classmethod
    def from_kept(cls, kept: Kept, norm: Float[Tensor, " d_sae"]) -> "TritonActive":
        """Make it from selected scores; the value of a latent is its score divided by its norm."""
        d_sae = norm.shape[0]
        values = kept.scores / norm[kept.columns.clamp(max=d_sae - 1).long()]
        # An unused place would be 0 / 0 where the last latent's norm is 0.
        values = torch.where(kept.columns < d_sae, values, 0.0)
        entries = Entries(values, kept.rows, kept.columns, kept.row_begin, kept.row_end, d_sae)
        return cls(entries, 0, d_sae, kept.row_begin, kept.row_end)

    @property
    def values(self) -> Float[Tensor, " entries"]:
        """Values of all entries of the batch."""
        return self.entries.values

    @cached_property
    def _chunks(self) -> products.Chunks:
        offsets = self.entries.column_offsets[self.first : self.last + 1]
        return products.Chunks.of(offsets[:-1].contiguous(), offsets[1:].contiguous(), self.values.shape[0])

    @cached_property
    def _inside(self) -> Bool[Tensor, " entries"]:
        return (self.entries.columns >= self.first) & (self.entries.columns < self.last)

    def decode(self, weight: Float[Tensor, "block d"]) -> Float[Tensor, "batch d"]:
        """A W, as a weighted sum of the rows of W."""
        return products.decode(self.values, self.entries.columns, self.row_begin, self.row_end, weight, self.first)

    def values_gradient(
        self, upstream: Float[Tensor, "batch d"], weight: Float[Tensor, "block d"]
    ) -> Float[Tensor, " entries"]:
        """<G[row], W[column]> for every entry."""
        return products.values_gradient(
            self.entries.columns, self.row_begin, self.row_end, upstream, weight, self.first
        )

    def weight_gradient(
        self, values: Float[Tensor, " entries"], inputs: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "block d"]:
        """V^T X, as a weighted sum of the rows of X."""
        return products.weight_gradient(values[self.entries.order], self.entries.column_rows, self._chunks, inputs)

    def column_sum(self, values: Float[Tensor, " entries"]) -> Float[Tensor, " block"]:
        """V^T 1."""
        return products.column_sum(values[self.entries.order], self._chunks.begin, self._chunks.end)

    def add_per_latent(
        self, values: Float[Tensor, " entries"], addend: Float[Tensor, " block"]
    ) -> Float[Tensor, " entries"]:
        """Add one number per latent to the values of its entries."""
        place = (self.entries.columns.long() - self.first).clamp(0, self.last - self.first - 1)
        return torch.where(self._inside, values + addend[place], 0.0)

    def column_count(self) -> Int[Tensor, " block"]:
        """Number of rows in which each latent is active."""
        return self._chunks.end - self._chunks.begin

    def split(self, ends: tuple[int, ...]) -> "list[tuple[TritonActive, slice]]":
        """Blocks of latents, each up to one of ``ends``, and their columns; all blocks share the entries."""
        if ends == (self.last,):
            return [(self, slice(0, self.last))]
        bounds = [self.row_begin, *(self.entries.row_places(end) for end in ends[:-1]), self.row_end]
        blocks = zip(pairwise((0, *ends)), pairwise(bounds), strict=True)
        return [
            (TritonActive(self.entries, first, last, begin, end), slice(first, last))
            for (first, last), (begin, end) in blocks
        ]
