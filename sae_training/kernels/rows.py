"""Products that run over the entries row by row: decode, and the gradient of the values."""

import torch
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_training.kernels.launch import blocks, kernel, on_device_of, sum_type


@kernel
def _decode(values, columns, row_begin, row_end, weight, out, first, d, TILE: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr):  # fmt: skip  # noqa: PLR0913
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = place < d
    begin = tl.load(row_begin + row)
    end = tl.load(row_end + row)
    total = tl.zeros((WIDTH,), SUM)
    for start in range(begin, end, TILE):
        entry = start + tl.arange(0, TILE)
        active = entry < end
        column = tl.load(columns + entry, mask=active, other=first).to(tl.int64) - first
        value = tl.load(values + entry, mask=active, other=0.0).to(SUM)
        where = column[:, None] * d + place[None, :]
        gathered = tl.load(weight + where, mask=active[:, None] & inside[None, :], other=0.0).to(SUM)
        total += tl.sum(value[:, None] * gathered, axis=0)
    tl.store(out + row * d + place, total.to(out.dtype.element_ty), mask=inside)


@kernel
def _values_gradient(columns, row_begin, row_end, upstream, weight, partial, first, d, n_entries, TILE: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr):  # fmt: skip  # noqa: PLR0913
    row = tl.program_id(0).to(tl.int64)
    slab = tl.program_id(1).to(tl.int64)
    place = slab * WIDTH + tl.arange(0, WIDTH)
    inside = place < d
    begin = tl.load(row_begin + row)
    end = tl.load(row_end + row)
    gradient = tl.load(upstream + row * d + place, mask=inside, other=0.0).to(SUM)
    for start in range(begin, end, TILE):
        entry = start + tl.arange(0, TILE)
        active = entry < end
        column = tl.load(columns + entry, mask=active, other=first).to(tl.int64) - first
        where = column[:, None] * d + place[None, :]
        gathered = tl.load(weight + where, mask=active[:, None] & inside[None, :], other=0.0).to(SUM)
        product = tl.sum(gathered * gradient[None, :], axis=1)
        tl.store(partial + slab * n_entries + entry, product, mask=active)


def decode(
    values: Float[Tensor, " entries"],
    columns: Int[Tensor, " entries"],
    row_begin: Int[Tensor, " batch"],
    row_end: Int[Tensor, " batch"],
    weight: Float[Tensor, "block d"],
    first: int,
) -> Float[Tensor, "batch d"]:
    """For each row, the sum of value * weight[column - first] over its entries; 0 for a row without entries.

    Each program computes one slab of one row, so the columns are read once for all models.
    """
    weight = weight.contiguous()
    cut, (_, sums) = blocks(weight), sum_type(values, weight)
    shape = (row_begin.shape[0], weight.shape[1])
    out = torch.empty(shape, dtype=torch.promote_types(values.dtype, weight.dtype), device=weight.device)
    with on_device_of(weight):
        _decode[(shape[0], cut.n_slabs)](
            values, columns, row_begin, row_end, weight, out, first, shape[1],
            TILE=cut.tile, WIDTH=cut.width, SUM=sums,
        )  # fmt: skip
    return out


def values_gradient(
    columns: Int[Tensor, " entries"],
    row_begin: Int[Tensor, " batch"],
    row_end: Int[Tensor, " batch"],
    upstream: Float[Tensor, "batch d"],
    weight: Float[Tensor, "block d"],
    first: int,
) -> Float[Tensor, " entries"]:
    """<upstream[row], weight[column - first]> for the entries in the ranges of the rows, 0 for all others.

    Each slab writes its part of the dot products, and the parts are added in a fixed order. They take d / width numbers
    per entry, with a width of at least min(d, 64), so no [batch k d] tensor is made.
    """
    upstream, weight = upstream.contiguous(), weight.contiguous()
    cut, (kept, sums) = blocks(weight), sum_type(upstream, weight)
    partial = torch.zeros((cut.n_slabs, columns.shape[0]), dtype=kept, device=weight.device)
    with on_device_of(weight):
        _values_gradient[(upstream.shape[0], cut.n_slabs)](
            columns, row_begin, row_end, upstream, weight, partial, first, weight.shape[1], columns.shape[0],
            TILE=cut.tile, WIDTH=cut.width, SUM=sums,
        )  # fmt: skip
    return partial.sum(dim=0).to(torch.promote_types(upstream.dtype, weight.dtype))
