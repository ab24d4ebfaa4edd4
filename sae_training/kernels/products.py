"""Products over the entries row by row (decode, values gradient) and latent by latent (weight gradient, sums).

For the latter, the entries are sorted by latent, then by row. The sum of a latent runs over one range, in one order and
without atomic operations, so results are reproducible to the bit. The entries of a latent are cut into chunks of
`CHUNK`. The first chunk is written to the row of the latent, and a second kernel adds the others, in order, from spare
rows.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 128
COLUMN_BLOCK = 128
# Largest slab of the gathered matrix, so that it stays in the L2 cache (50 MB on an H100 or H200) beside the data that
# stream through.
CACHE_BYTES = 32 << 20
NARROWEST, WIDEST = 64, 1024
TILE_ELEMENTS = 4096


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` of the undecorated function: Triton reads its globals, which a type checker's wrapper hides."""
    return triton.jit(inspect.unwrap(function))


@dataclass(frozen=True)
class Blocks:
    """How a product over a [rows d] matrix is divided.

    Attributes:
        width: Columns of a slab.
        n_slabs: Number of slabs that cover d.
        tile: Rows that a program gathers at once.
    """

    width: int
    n_slabs: int
    tile: int


def blocks(gathered: Tensor) -> Blocks:
    """Divide a matrix whose rows are gathered into slabs that fit into the cache.

    The programs of a slab are scheduled together, so a row that many entries need is read from memory once.
    """
    n_rows, d = gathered.shape
    width = WIDEST
    while width > NARROWEST and n_rows * width * gathered.element_size() > CACHE_BYTES:
        width //= 2
    width = min(width, 1 << (max(d, 1) - 1).bit_length())
    return Blocks(width, -(-d // width), min(16, TILE_ELEMENTS // width))


def sum_type(*tensors: Tensor) -> tuple[torch.dtype, tl.dtype]:
    """The type of the sums for torch and for Triton: float64 if a tensor is, float32 otherwise."""
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return torch.float64, tl.float64
    return torch.float32, tl.float32


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the GPU of a tensor the current one, where Triton launches kernels."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@dataclass(frozen=True)
class Chunks:
    """The range of sorted entries of each latent, cut into chunks; its size does not depend on values on the device.

    Attributes:
        begin: First entry of each latent.
        end: End of the entries of each latent (exclusive).
        first_chunk: Number of the first chunk of each latent; a latent without entries has one empty chunk.
        chunk_column: Latent of each chunk; ``n_columns`` for unused chunks.
        spare_begin: First spare row of each latent, which has one for every chunk after the first.
        spare_end: End of the spare rows of each latent (exclusive).
        spare_column: Latent of each spare row; ``n_columns`` for unused rows.
    """

    begin: Int[Tensor, " n_columns"]
    end: Int[Tensor, " n_columns"]
    first_chunk: Int[Tensor, " n_columns"]
    chunk_column: Int[Tensor, " n_chunks"]
    spare_begin: Int[Tensor, " n_columns"]
    spare_end: Int[Tensor, " n_columns"]
    spare_column: Int[Tensor, " n_spare"]

    @classmethod
    def of(cls, begin: Int[Tensor, " n_columns"], end: Int[Tensor, " n_columns"], n_entries: int) -> "Chunks":
        """Cut ranges that have at most ``n_entries`` entries in total."""
        # A latent with c entries has (c - 1) // CHUNK chunks after its first; the total is at most n_entries / CHUNK.
        n_columns, n_spare = begin.shape[0], n_entries // CHUNK
        spare = ((end - begin - 1) // CHUNK).clamp(min=0)
        spare_end = spare.cumsum(0)
        chunk_end = spare_end + torch.arange(1, n_columns + 1, device=begin.device)
        numbers = torch.arange(n_columns + n_spare, device=begin.device)
        return cls(
            begin,
            end,
            chunk_end - spare - 1,
            torch.searchsorted(chunk_end, numbers, right=True),
            spare_end - spare,
            spare_end,
            torch.searchsorted(spare_end, numbers[:n_spare], right=True),
        )


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


@kernel
def _weight_gradient(values, rows, begin, end, first_chunk, chunk_column, inputs, out, spare, n_columns, d, CHUNK: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr):  # fmt: skip  # noqa: PLR0913
    chunk = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = place < d
    column = tl.load(chunk_column + chunk)
    if column < n_columns:
        number = chunk - tl.load(first_chunk + column)
        from_entry = tl.load(begin + column) + number * CHUNK
        to_entry = tl.minimum(from_entry + CHUNK, tl.load(end + column))
        total = tl.zeros((WIDTH,), SUM)
        for start in range(from_entry, to_entry, TILE):
            entry = start + tl.arange(0, TILE)
            active = entry < to_entry
            row = tl.load(rows + entry, mask=active, other=0).to(tl.int64)
            value = tl.load(values + entry, mask=active, other=0.0).to(SUM)
            where = row[:, None] * d + place[None, :]
            gathered = tl.load(inputs + where, mask=active[:, None] & inside[None, :], other=0.0).to(SUM)
            total += tl.sum(value[:, None] * gathered, axis=0)
        tl.store(out + column * d + place, total, mask=inside & (number == 0))
        tl.store(spare + (chunk - column - 1) * d + place, total, mask=inside & (number > 0))


@kernel
def _add_spare(spare_begin, spare_end, spare_column, spare, out, n_columns, d, WIDTH: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = place < d
    column = tl.load(spare_column + number)
    if column < n_columns:  # noqa: SIM102 - Triton evaluates both sides of `and`
        if number == tl.load(spare_begin + column):
            total = tl.load(out + column * d + place, mask=inside, other=0.0)
            for line in range(number, tl.load(spare_end + column)):
                total += tl.load(spare + line * d + place, mask=inside, other=0.0)
            tl.store(out + column * d + place, total, mask=inside)


@kernel
def _column_sum(values, begin, end, out, BLOCK: tl.constexpr, SUM: tl.constexpr):
    column = tl.program_id(0)
    from_entry = tl.load(begin + column)
    to_entry = tl.load(end + column)
    total = tl.zeros((BLOCK,), SUM)
    for start in range(from_entry, to_entry, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        total += tl.load(values + entry, mask=entry < to_entry, other=0.0).to(SUM)
    tl.store(out + column, tl.sum(total, axis=0).to(out.dtype.element_ty))


def weight_gradient(
    values: Float[Tensor, " entries"], rows: Int[Tensor, " entries"], chunks: Chunks, inputs: Float[Tensor, "batch d"]
) -> Float[Tensor, "n_columns d"]:
    """For each latent, the sum of value * inputs[row] over its entries; 0 for a latent without entries.

    Args:
        values: Values of the entries, sorted by latent.
        rows: Rows of the entries, in the same order.
        chunks: Range of each latent in that order.
        inputs: Matrix whose rows are summed.
    """
    inputs = inputs.contiguous()
    cut, (kept, sums) = blocks(inputs), sum_type(values, inputs)
    n_columns, d = chunks.begin.shape[0], inputs.shape[1]
    n_spare = chunks.spare_column.shape[0]
    out = torch.empty((n_columns, d), dtype=kept, device=inputs.device)
    spare = torch.empty((n_spare, d), dtype=kept, device=inputs.device)
    with on_device_of(inputs):
        _weight_gradient[(chunks.chunk_column.shape[0], cut.n_slabs)](
            values, rows, chunks.begin, chunks.end, chunks.first_chunk, chunks.chunk_column, inputs, out, spare,
            n_columns, d, CHUNK=CHUNK, TILE=cut.tile, WIDTH=cut.width, SUM=sums,
        )  # fmt: skip
        if n_spare:
            _add_spare[(n_spare, cut.n_slabs)](
                chunks.spare_begin, chunks.spare_end, chunks.spare_column, spare, out, n_columns, d, WIDTH=cut.width
            )
    return out.to(torch.promote_types(values.dtype, inputs.dtype))


def column_sum(
    values: Float[Tensor, " entries"], begin: Int[Tensor, " n_columns"], end: Int[Tensor, " n_columns"]
) -> Float[Tensor, " n_columns"]:
    """For each latent, the sum of the values of its entries, which are sorted by latent."""
    _, sums = sum_type(values)
    out = torch.empty(begin.shape, dtype=values.dtype, device=values.device)
    with on_device_of(values):
        _column_sum[(begin.shape[0],)](values, begin, end, out, BLOCK=COLUMN_BLOCK, SUM=sums)
    return out


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
