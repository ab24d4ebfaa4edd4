"""The active features of a batch on a GPU: compressed rows of a size known beforehand, and the products with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_training.kernels import columns as by_column
from sae_training.kernels import rows as by_row
from sae_training.kernels.selection import Kept


@dataclass(frozen=True)
class Entries:
    """The entries of a batch in row order, then by feature; unused places at the end have column ``d_sae``, value 0.

    The number of places is known on the host, how many are used on the device alone.
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
        """The order that sorts the entries by feature, then by row; unused places come last."""
        return self._sorted[1]

    @cached_property
    def column_rows(self) -> Int[Tensor, " entries"]:
        """The rows in that order."""
        return self.rows[self.order]

    @cached_property
    def column_offsets(self) -> Int[Tensor, " d_sae_plus_1"]:
        """Where each feature begins in that order, and where the last one ends."""
        bounds = torch.arange(self.d_sae + 1, dtype=self.columns.dtype, device=self.columns.device)
        return torch.searchsorted(self._sorted[0], bounds)

    def row_places(self, column: int) -> Int[Tensor, " batch"]:
        """Each row's first entry at or after a feature."""
        key = self.rows.long() * self.d_sae + self.columns
        unused = self.columns == self.d_sae
        row = torch.arange(self.row_begin.shape[0], device=key.device)
        return torch.searchsorted(torch.where(unused, row.shape[0] * self.d_sae, key), row * self.d_sae + column)


@dataclass(frozen=True)
class TritonActive:
    """A block of features, ``first`` up to ``last``, of a batch's entries.

    Values go in and come out for all entries of the batch; those outside the block are not read, and come out as 0.
    """

    entries: Entries
    first: int
    last: int
    row_begin: Int[Tensor, " batch"]
    row_end: Int[Tensor, " batch"]

    @classmethod
    def from_kept(cls, kept: Kept, norm: Float[Tensor, " d_sae"]) -> TritonActive:
        """From chosen scores: a feature's value is its score over its norm."""
        d_sae = norm.shape[0]
        values = kept.scores / norm[kept.columns.clamp(max=d_sae - 1).long()]
        # An unused place would be 0 / 0 where the last feature's norm is 0.
        values = torch.where(kept.columns < d_sae, values, 0.0)
        entries = Entries(values, kept.rows, kept.columns, kept.row_begin, kept.row_end, d_sae)
        return cls(entries, 0, d_sae, kept.row_begin, kept.row_end)

    @property
    def values(self) -> Float[Tensor, " entries"]:
        """Of all entries of the batch."""
        return self.entries.values

    @cached_property
    def _chunks(self) -> by_column.Chunks:
        offsets = self.entries.column_offsets[self.first : self.last + 1]
        return by_column.Chunks.of(offsets[:-1].contiguous(), offsets[1:].contiguous(), self.values.shape[0])

    @cached_property
    def _inside(self) -> Bool[Tensor, " entries"]:
        return (self.entries.columns >= self.first) & (self.entries.columns < self.last)

    def decode(self, weight: Float[Tensor, "block d"]) -> Float[Tensor, "batch d"]:
        """A W, as a weighted sum of W's rows."""
        return by_row.decode(self.values, self.entries.columns, self.row_begin, self.row_end, weight, self.first)

    def values_gradient(
        self, upstream: Float[Tensor, "batch d"], weight: Float[Tensor, "block d"]
    ) -> Float[Tensor, " entries"]:
        """<G[row], W[column]> of every entry."""
        return by_row.values_gradient(self.entries.columns, self.row_begin, self.row_end, upstream, weight, self.first)

    def weight_gradient(
        self, values: Float[Tensor, " entries"], inputs: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "block d"]:
        """V^T X, as a weighted sum of X's rows."""
        return by_column.weight_gradient(values[self.entries.order], self.entries.column_rows, self._chunks, inputs)

    def column_sum(self, values: Float[Tensor, " entries"]) -> Float[Tensor, " block"]:
        """V^T 1."""
        return by_column.column_sum(values[self.entries.order], self._chunks.begin, self._chunks.end)

    def add_per_feature(
        self, values: Float[Tensor, " entries"], addend: Float[Tensor, " block"]
    ) -> Float[Tensor, " entries"]:
        """Add a number per feature to its entries."""
        place = (self.entries.columns.long() - self.first).clamp(0, self.last - self.first - 1)
        return torch.where(self._inside, values + addend[place], 0.0)

    def column_count(self) -> Int[Tensor, " block"]:
        """Rows in which each feature is active."""
        return self._chunks.end - self._chunks.begin

    def split(self, ends: tuple[int, ...]) -> list[tuple[TritonActive, slice]]:
        """Blocks of features up to each end, and where they are; they share the entries."""
        if ends == (self.last,):
            return [(self, slice(0, self.last))]
        bounds = [self.row_begin, *(self.entries.row_places(end) for end in ends[:-1]), self.row_end]
        blocks = zip(pairwise((0, *ends)), pairwise(bounds), strict=True)
        return [
            (TritonActive(self.entries, first, last, begin, end), slice(first, last))
            for (first, last), (begin, end) in blocks
        ]
