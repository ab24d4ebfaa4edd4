"""The active latents of a batch, sparse or dense, and the four products that training needs.

With the latent activations A [batch d_sae], inputs X [batch d] and weights W [d_sae d], every `Active` computes

- ``decode(W)`` = A W,
- ``values_gradient(G, W)`` = G W^T where a latent is active: the gradient of the entries of A for dL/d(A W) = G,
- ``weight_gradient(values, X)`` = V^T X, where V holds the given values in the pattern of A,
- ``column_sum(values)`` = V^T 1.

Each product of `DenseActive` takes batch * d_sae * d operations. It works on every device, and is the reference and the
fallback. The products of `SparseActive` (CPU) and of `sae_training.kernels.active.TritonActive` (GPU) take batch * k *
d.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

Values = Float[Tensor, " active"] | Float[Tensor, "batch d_sae"]


@runtime_checkable
class Active(Protocol):
    """The operations on active latents that training uses.

    Values are numbers in the pattern of A. Each class has its own order for them, and takes back what it returned.
    """

    @property
    def values(self) -> Values:
        """The entries of A."""
        ...

    def decode(self, weight: Float[Tensor, "d_sae d"], /) -> Float[Tensor, "batch d"]:
        """Multiply the activations by a weight."""
        ...

    def values_gradient(self, upstream: Float[Tensor, "batch d"], weight: Float[Tensor, "d_sae d"], /) -> Values:
        """G W^T where a latent is active."""
        ...

    def weight_gradient(self, values: Values, inputs: Float[Tensor, "batch d"], /) -> Float[Tensor, "d_sae d"]:
        """V^T X."""
        ...

    def column_sum(self, values: Values, /) -> Float[Tensor, " d_sae"]:
        """V^T 1."""
        ...

    def add_per_latent(self, values: Values, addend: Float[Tensor, " d_sae"], /) -> Values:
        """Add one number per latent to the values of its entries."""
        ...

    def column_count(self) -> Int[Tensor, " d_sae"]:
        """Number of rows in which each latent is active."""
        ...

    def split(self, ends: tuple[int, ...], /) -> "Sequence[tuple[Active, slice]]":
        """Blocks of latents, each up to one of ``ends``, and their columns."""
        ...


@dataclass(frozen=True)
class DenseActive:
    """Activations of all latents in all rows; zero where a latent is inactive."""

    values: Float[Tensor, "batch d_sae"]
    mask: Bool[Tensor, "batch d_sae"]

    def decode(self, weight: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
        """Multiply the activations by a weight."""
        return self.values @ weight

    def values_gradient(self, upstream: Float[Tensor, "batch d"], weight: Float[Tensor, "d_sae d"]) -> Values:
        """G W^T, zero where inactive."""
        return torch.where(self.mask, upstream @ weight.T, 0.0)

    def weight_gradient(self, values: Values, inputs: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
        """V^T X."""
        return values.T @ inputs

    def column_sum(self, values: Values) -> Float[Tensor, " d_sae"]:
        """V^T 1."""
        return values.sum(dim=0)

    def add_per_latent(self, values: Values, addend: Float[Tensor, " d_sae"]) -> Values:
        """Add one number per latent to the values of its entries."""
        return torch.where(self.mask, values + addend, 0.0)

    def column_count(self) -> Int[Tensor, " d_sae"]:
        """Number of rows in which each latent is active."""
        return self.mask.sum(dim=0)

    def split(self, ends: tuple[int, ...]) -> "list[tuple[DenseActive, slice]]":
        """Blocks of latents, each up to one of ``ends``, and their columns."""
        blocks = [slice(first, last) for first, last in pairwise((0, *ends))]
        return [(DenseActive(self.values[:, block], self.mask[:, block]), block) for block in blocks]


@dataclass(frozen=True)
class SparseActive:
    """The active entries in row order (compressed sparse rows), for a CPU."""

    values: Float[Tensor, " active"]
    rows: Int[Tensor, " active"]
    columns: Int[Tensor, " active"]
    n_rows: int
    d_sae: int

    @classmethod
    def from_flat(
        cls, index: Int[Tensor, " active"], values: Float[Tensor, " active"], n_rows: int, d_sae: int
    ) -> "SparseActive":
        """Make it from increasing indices into the flattened ``[batch d_sae]`` matrix."""
        rows = torch.div(index, d_sae, rounding_mode="floor")
        return cls(values, rows, index - rows * d_sae, n_rows, d_sae)

    @cached_property
    def row_offsets(self) -> Int[Tensor, " batch"]:
        """First entry of each row."""
        return torch.searchsorted(self.rows, torch.arange(self.n_rows))

    @cached_property
    def by_column(self) -> Int[Tensor, " active"]:
        """The order that sorts the entries by latent, then by row."""
        columns = self.columns.numpy()
        # NumPy sorts 16-bit integers by radix sort, which is several times faster than its sort of 64-bit ones.
        small = columns.astype(np.uint16) if self.d_sae <= 1 << 16 else columns
        return torch.from_numpy(np.argsort(small, kind="stable"))

    @cached_property
    def column_rows(self) -> Int[Tensor, " active"]:
        """The rows in the order of `by_column`."""
        return self.rows[self.by_column]

    @cached_property
    def column_offsets(self) -> Int[Tensor, " d_sae"]:
        """First entry of each latent in the order of `by_column`."""
        counts = self.column_count()
        return counts.cumsum(0) - counts

    def column_count(self) -> Int[Tensor, " d_sae"]:
        """Number of rows in which each latent is active."""
        return torch.bincount(self.columns, minlength=self.d_sae)

    def decode(self, weight: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
        """A W, as a weighted sum of the rows of W."""
        return functional.embedding_bag(
            self.columns, weight, self.row_offsets, mode="sum", per_sample_weights=self.values
        )

    def values_gradient(self, upstream: Float[Tensor, "batch d"], weight: Float[Tensor, "d_sae d"]) -> Values:
        """<G[row], W[column]> for every entry."""
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            upstream, weight, self.columns, self.row_offsets, self.rows, 0, -1
        )

    def weight_gradient(self, values: Values, inputs: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
        """V^T X, as a weighted sum of the rows of X."""
        return functional.embedding_bag(
            self.column_rows, inputs, self.column_offsets, mode="sum", per_sample_weights=values[self.by_column]
        )

    def column_sum(self, values: Values) -> Float[Tensor, " d_sae"]:
        """V^T 1."""
        return torch.bincount(self.columns, weights=values, minlength=self.d_sae).to(values.dtype)

    def add_per_latent(self, values: Values, addend: Float[Tensor, " d_sae"]) -> Values:
        """Add one number per latent to the values of its entries."""
        return values + addend[self.columns]

    def split(self, ends: tuple[int, ...]) -> "list[tuple[SparseActive, slice]]":
        """Blocks of latents, each up to one of ``ends``, and their columns."""
        if ends == (self.d_sae,):
            return [(self, slice(0, self.d_sae))]
        parts = []
        for first, last in pairwise((0, *ends)):
            inside = (self.columns >= first) & (self.columns < last)
            columns = self.columns[inside] - first
            part = SparseActive(self.values[inside], self.rows[inside], columns, self.n_rows, last - first)
            parts.append((part, slice(first, last)))
        return parts
