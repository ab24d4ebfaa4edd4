"""Step ``kernels``: the selection and every product of the Triton kernels against the dense formula in float64.

The inputs are rounded to the dtype under test first, so that an error is one of the kernel. Among the inputs are rows
without an active latent, latents without an active row, matrices that are not contiguous, and a k that is not a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu_check.record import Record, relative_error
from sae_training.kernels.active import TritonActive
from sae_training.selection import Selector
from sae_training.variants import VARIANTS

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
"""Largest relative error of a product: rounding of float32 sums, and of one bfloat16 result (half of 2⁻⁷)."""


@dataclass(frozen=True)
class Shape:
    """Size of one case; the numbers of rows and columns are no multiples of the kernels' blocks."""

    batch: int
    d_all: int
    d_sae: int
    k: int


FULL = (Shape(4096, 7680, 32768, 50), Shape(1000, 1536, 8190, 17))
TINY = (Shape(8, 20, 48, 5),)


@dataclass(frozen=True)
class Inputs:
    """Inputs of the products, ``[batch d_sae]``, ``[d_sae]``, ``[batch d_all]`` and ``[d_sae d_all]``."""

    scores: Tensor
    norm: Tensor
    upstream: Tensor
    weight: Tensor


def inputs_of(shape: Shape, dtype: torch.dtype, device: str, *, strided: bool) -> Inputs:
    """Random inputs; with ``strided`` each matrix is a view into a larger one, which is not contiguous."""
    generator = torch.Generator(device).manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        wide = torch.randn(rows, columns + 8 * strided, generator=generator, device=device).to(dtype)
        return wide[:, 3 : 3 + columns] if strided else wide

    scores = matrix(shape.batch, shape.d_sae)
    scores[::7] = -scores[::7].abs()  # rows without an active latent
    scores[:, ::5] = -scores[:, ::5].abs()  # latents without an active row
    norm = torch.rand(shape.d_sae, generator=generator, device=device) + 0.5
    return Inputs(scores, norm, matrix(shape.batch, shape.d_all), matrix(shape.d_sae, shape.d_all))


def dense_of(active: TritonActive, batch: int, d_sae: int, values: Tensor) -> Tensor:
    """Values of the entries as a float64 matrix ``[batch d_sae]``."""
    entries = active.entries
    used = entries.columns < d_sae
    dense = torch.zeros(batch, d_sae, dtype=torch.float64, device=values.device)
    place = entries.rows[used].long(), entries.columns[used].long()
    return dense.index_put(place, values[used].double())


def selection_errors(inputs: Inputs, active: TritonActive, shape: Shape, variant: str) -> Iterator[tuple[str, float]]:
    """What the selection must satisfy: the highest positive scores, as many as there may be, with their values."""
    scores = inputs.scores.double()
    kept = dense_of(active, shape.batch, shape.d_sae, torch.ones_like(active.values)) > 0
    positive = scores > 0
    if variant == "l1":
        yield "entries that should be active", float((kept != positive).sum())
    elif variant == "topk":
        n_kept = positive.sum(dim=1).clamp(max=shape.k)
        lowest = torch.where(kept, scores, torch.inf).amin(dim=1)
        highest = torch.where(kept, -torch.inf, scores).amax(dim=1)
        yield "rows with another number of entries", float((kept.sum(dim=1) != n_kept).sum())
        yield "rows that left out a higher score", float(((highest > lowest) & (highest > 0)).sum())
    else:
        wanted = min(int(positive.sum()), shape.k * shape.batch)
        yield "entries too many or too few", float(abs(int(kept.sum()) - wanted))
        left_out = torch.where(kept, -torch.inf, scores).max()
        yield "a higher score was left out", float(left_out > torch.where(kept, scores, torch.inf).min())
    values = dense_of(active, shape.batch, shape.d_sae, active.values)
    yield "relative error of the values", relative_error(values, torch.where(kept, scores / inputs.norm.double(), 0.0))


def product_errors(inputs: Inputs, active: TritonActive, shape: Shape) -> Iterator[tuple[str, float]]:
    """Relative error of every product."""
    weight, upstream = inputs.weight.double(), inputs.upstream.double()
    acts = dense_of(active, shape.batch, shape.d_sae, active.values)
    yield "decode", relative_error(active.decode(inputs.weight), acts @ weight)
    gradient = active.values_gradient(inputs.upstream, inputs.weight)
    exact = torch.where(acts > 0, upstream @ weight.T, 0.0)
    yield "values_gradient", relative_error(dense_of(active, shape.batch, shape.d_sae, gradient), exact)
    yield "weight_gradient", relative_error(active.weight_gradient(active.values, inputs.upstream), acts.T @ upstream)
    yield "column_sum", relative_error(active.column_sum(active.values), acts.sum(dim=0))
    yield "column_count", relative_error(active.column_count(), (acts > 0).sum(dim=0))
    added = active.add_per_latent(active.values, inputs.norm.to(active.values.dtype))
    exact = torch.where(acts > 0, acts + inputs.norm.double(), 0.0)
    yield "add_per_latent", relative_error(dense_of(active, shape.batch, shape.d_sae, added), exact)
    half = shape.d_sae // 2
    blocks = active.split((half, shape.d_sae))
    decoded = torch.stack([block.decode(inputs.weight[place]).double() for block, place in blocks]).sum(dim=0)
    yield "decode in two blocks", relative_error(decoded, acts @ weight)


@torch.no_grad()
def run(record: Record) -> None:
    """Check every kernel at every shape."""
    for shape in TINY if record.tiny else FULL:
        for dtype, tolerance in TOLERANCE.items():
            for strided in (False, True):
                inputs = inputs_of(shape, dtype, record.device, strided=strided)
                for variant in (
                    ("batchtopk", "topk", "l1") if shape == (TINY if record.tiny else FULL)[-1] else ("batchtopk",)
                ):
                    _check(record, inputs, shape, variant, tolerance, strided=strided)
                if record.device == "cuda":
                    torch.cuda.empty_cache()


def _check(record: Record, inputs: Inputs, shape: Shape, variant: str, tolerance: float, *, strided: bool) -> None:
    active, _ = Selector(VARIANTS[variant], shape.k, "triton").select(inputs.scores, inputs.norm, sparse=True)
    assert isinstance(active, TritonActive), "the Triton backend selects on the device"
    dtype = str(inputs.weight.dtype).removeprefix("torch.")
    case = f"{variant} {shape.batch}x{shape.d_all}, F {shape.d_sae}, k {shape.k}, {dtype}{', strided' * strided}"
    for what, error in selection_errors(inputs, active, shape, variant):
        record.check(f"{case}: {what}", error, tolerance if "relative" in what else 0.0)
    for what, error in product_errors(inputs, active, shape):
        record.check(f"{case}: {what}", error, tolerance)
