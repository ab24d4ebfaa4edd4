"""Every implementation of the active latents against the dense formula in float64, on shapes that break kernels."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from torch import Tensor

from sae_training.active import Active, DenseActive, SparseActive

Make = Callable[[Tensor], Active]
PATTERNS = ("random", "nothing", "everything", "one column", "one row", "last entry", "every other row empty")


def matrix(pattern: str, n_rows: int, d_sae: int, seed: int) -> Tensor:
    """Active latents [batch d_sae], positive where active."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n_rows, d_sae, generator=generator, dtype=torch.float64) + 0.1
    mask = torch.rand(n_rows, d_sae, generator=generator) < 0.3
    rows, columns = torch.arange(n_rows)[:, None], torch.arange(d_sae)[None]
    masks = {
        "random": mask,
        "nothing": mask & False,
        "everything": mask | True,
        "one column": (columns == d_sae // 2).expand(n_rows, -1),
        "one row": (rows == n_rows // 2).expand(-1, d_sae),
        "last entry": (rows == n_rows - 1) & (columns == d_sae - 1),
        "every other row empty": mask & (rows % 2 == 1),
    }
    return torch.where(masks[pattern], values, 0.0)


def dense(acts: Tensor) -> Active:
    return DenseActive(acts, acts > 0)


def on_cpu(acts: Tensor) -> Active:
    index = torch.from_numpy(np.flatnonzero(acts.numpy()))
    return SparseActive.from_flat(index, acts.flatten()[index], *acts.shape)


def triton_maker(device: torch.device) -> Make:
    def make(acts: Tensor) -> Active:
        from sae_training.kernels.active import TritonActive
        from sae_training.kernels.selection import all_positive

        on_device = acts.to(device)
        return TritonActive.from_kept(all_positive(on_device), torch.ones_like(on_device[0]))

    return make


def check(active: Active, acts: Tensor, upstream: Tensor, weight: Tensor, tolerance: dict[str, float]) -> None:
    """All products of one block of latents, computed with dense matrices."""
    mask = (acts > 0).double()
    addend = torch.linspace(-1, 1, acts.shape[1], dtype=torch.float64)
    device, dtype = active.values.device, active.values.dtype

    def given(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype)

    def close(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found.cpu().double(), expected, **tolerance)

    close(active.decode(given(weight)), acts @ weight)
    gradient = active.values_gradient(given(upstream), given(weight))
    expected = (upstream @ weight.T) * mask
    close(active.weight_gradient(active.values, given(upstream)), acts.T @ upstream)
    close(active.weight_gradient(gradient, given(upstream)), expected.T @ upstream)
    close(active.column_sum(gradient), expected.sum(dim=0))
    added = active.add_per_latent(gradient, given(addend))
    close(active.column_sum(added), ((expected + addend) * mask).sum(dim=0))
    if added.dtype == torch.float64:  # entries outside the block of latents are 0
        close(added.sum(), ((expected + addend) * mask).sum())
    assert torch.equal(active.column_count().cpu(), (acts > 0).sum(dim=0))


def check_with_split(make: Make, acts: Tensor, d: int, tolerance: dict[str, float], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(d)
    upstream = torch.randn(acts.shape[0], d, generator=generator).to(dtype).double()
    weight = torch.randn(acts.shape[1], d, generator=generator).to(dtype).double()
    active = make(acts.to(dtype))
    acts = acts.to(dtype).double()
    check(active, acts, upstream, weight, tolerance)
    d_sae = acts.shape[1]
    ends = tuple(sorted({max(1, d_sae // 3), d_sae}))
    parts = active.split(ends)
    assert [place.stop for _, place in parts] == list(ends)
    for part, place in parts:
        check(part, acts[:, place] * 1.0, upstream, weight[place], tolerance)


@pytest.fixture(params=["dense", "embedding_bag", "triton"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "triton":
        return triton_maker(request.getfixturevalue("kernel_device"))
    return {"dense": dense, "embedding_bag": on_cpu}[request.param]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_backend_equals_the_dense_formula(make: Make, pattern: str) -> None:
    acts = matrix(pattern, n_rows=7, d_sae=11, seed=0)
    assert isinstance(make(acts), Active)
    check_with_split(make, acts, 6, {"rtol": 1e-12, "atol": 1e-12}, torch.float64)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pattern=st.sampled_from(PATTERNS),
    n_rows=st.integers(1, 8),
    d_sae=st.integers(1, 9),
    d=st.sampled_from([1, 3, 16, 67, 130]),
    chunk=st.integers(1, 5),
)
@example(pattern="one column", n_rows=8, d_sae=3, d=67, chunk=3)
@example(pattern="everything", n_rows=1, d_sae=1, d=1, chunk=1)
@example(pattern="nothing", n_rows=3, d_sae=5, d=130, chunk=2)
def test_triton_on_any_shape(
    kernel_device: torch.device, pattern: str, n_rows: int, d_sae: int, d: int, chunk: int
) -> None:
    # Small chunks and slabs divide columns and rows of these sizes several times.
    acts = matrix(pattern, n_rows, d_sae, seed=d_sae)
    with patch("sae_training.kernels.products.CHUNK", chunk), patch("sae_training.kernels.products.WIDEST", 64):
        check_with_split(triton_maker(kernel_device), acts, d, {"rtol": 1e-11, "atol": 1e-12}, torch.float64)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, {"rtol": 1e-5, "atol": 1e-5}), (torch.bfloat16, {"rtol": 2e-2, "atol": 0.3})],
    ids=["float32", "bfloat16"],
)
def test_triton_in_training_types(kernel_device: torch.device, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    acts = matrix("random", n_rows=12, d_sae=6, seed=1)
    check_with_split(triton_maker(kernel_device), acts, 70, tolerance, dtype)


def test_sums_of_bfloat16_are_kept_in_float32(kernel_device: torch.device) -> None:
    # 1 + 256 * 2^-9: in bfloat16, each addition would round back to 1.
    acts = torch.full((1, 257), 2.0**-9, dtype=torch.float64)
    acts[0, 0] = 1.0
    active = triton_maker(kernel_device)(acts.bfloat16())
    decoded = active.decode(torch.ones(257, 3, dtype=torch.bfloat16, device=kernel_device))
    assert decoded.dtype == torch.bfloat16
    assert decoded.tolist() == [[1.5, 1.5, 1.5]]


def test_mixed_types_give_the_wider_one(kernel_device: torch.device) -> None:
    active = triton_maker(kernel_device)(matrix("random", 4, 5, seed=0).float())
    half = torch.ones(5, 3, dtype=torch.bfloat16, device=kernel_device)
    assert active.decode(half).dtype == torch.float32
    assert active.weight_gradient(active.values, half[:4]).dtype == torch.float32


def test_matrices_that_are_not_contiguous(kernel_device: torch.device) -> None:
    acts = matrix("random", 4, 5, seed=3)
    weight = torch.randn(6, 5, dtype=torch.float64)
    found = triton_maker(kernel_device)(acts).decode(weight.T.to(kernel_device))
    torch.testing.assert_close(found.cpu(), acts @ weight.T)
