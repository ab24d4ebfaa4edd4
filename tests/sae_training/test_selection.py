"""Selection of active latents: on the device against sorting, and the backends against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from sae_training.active import DenseActive
from sae_training.selection import Selector
from sae_training.variants import VARIANTS


def by_sorting(scores: Tensor, n_kept: int) -> tuple[list[int], float]:
    """Increasing indices of the highest positive scores, with ties by index, and the cut."""
    flat = scores.double().flatten().numpy()
    order = np.lexsort((np.arange(flat.size), -flat))
    kept = [place for place in order[:n_kept] if flat[place] > 0]
    return sorted(int(place) for place in kept), float(flat[kept[-1]]) if len(kept) == n_kept else 0.0


def check_highest(scores: Tensor, k: int, device: torch.device, *, per_row: bool) -> None:
    from sae_training.kernels.selection import highest

    n_rows, d_sae = scores.shape
    n_kept = k if per_row else k * n_rows
    kept = highest(scores.to(device), n_kept, per_row=per_row)
    assert kept.columns.shape == (k * n_rows,)
    used = kept.columns.cpu() < d_sae
    places = (kept.rows.cpu().long() * d_sae + kept.columns.cpu())[used]
    groups = scores.split(1) if per_row else (scores,)
    expected = [by_sorting(group, n_kept) for group in groups]
    assert places.tolist() == [row * d_sae + place for row, (found, _) in enumerate(expected) for place in found]
    assert kept.cut.cpu().double().tolist() == [cut for _, cut in expected]
    assert torch.equal(kept.scores.cpu()[used], scores.flatten()[places])
    assert not kept.scores.cpu()[~used].any()
    assert not used[int(used.sum()) :].any(), "unused places come last"
    n_in_row = torch.bincount(places // d_sae, minlength=n_rows)
    assert torch.equal((kept.row_end - kept.row_begin).cpu(), n_in_row)
    assert torch.equal(kept.row_end.cpu(), n_in_row.cumsum(0))


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_rows=st.integers(1, 6),
    d_sae=st.integers(1, 40),
    k_share=st.floats(0.01, 1),
    values=st.sampled_from(["distinct", "many ties", "mostly negative", "all equal", "wide range", "one row"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    per_row=st.booleans(),
    seed=st.integers(0, 9),
)
def test_highest_on_the_device_equals_sorting(
    kernel_device: torch.device,
    n_rows: int,
    d_sae: int,
    k_share: float,
    values: str,
    dtype: torch.dtype,
    per_row: bool,
    seed: int,
) -> None:
    noise = torch.randn(n_rows, d_sae, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = {
        "distinct": noise,
        "many ties": (2 * noise).round(),
        "mostly negative": noise - 2,
        "all equal": torch.ones_like(noise),
        "wide range": torch.sign(noise) * 10.0 ** (9 * noise),
        "one row": torch.where(torch.arange(n_rows)[:, None] == n_rows - 1, noise.abs() + 1, 0.1 * noise),
    }[values]
    check_highest(scores.to(dtype), max(1, round(k_share * d_sae)), kernel_device, per_row=per_row)


@pytest.mark.parametrize("per_row", [False, True], ids=["batch", "row"])
def test_highest_across_blocks_and_extremes(kernel_device: torch.device, per_row: bool) -> None:
    scores = torch.randn(2, 2500, generator=torch.Generator().manual_seed(0))
    scores[0, 2400] = float("inf")
    scores[1, 7] = 1e-42  # subnormal
    scores[0, 3] = -0.0
    scores[1, 2047:2051] = 9.0  # ties on both sides of a block's end
    scores[0, 1] = float("nan")
    check_highest(torch.nan_to_num(scores, nan=-1.0, posinf=torch.inf), 20, kernel_device, per_row=per_row)
    from sae_training.kernels.selection import highest

    with_nan = highest(scores.to(kernel_device), 40, per_row=False)
    without = highest(torch.nan_to_num(scores, nan=-1.0, posinf=torch.inf).to(kernel_device), 40, per_row=False)
    assert torch.equal(with_nan.columns, without.columns), "a score that is no number is never chosen"


def test_duplicated_rows_tie_at_the_cut_and_leave_the_size_fixed(kernel_device: torch.device) -> None:
    from sae_training.kernels.selection import highest

    row = torch.tensor([3.0, 1.0, 2.0, 0.0])
    kept = highest(row.repeat(3, 1).to(kernel_device), 5, per_row=False)
    # All three 3s, and the 2s of the first two rows.
    assert kept.rows.tolist() == [0, 0, 1, 1, 2]
    assert kept.columns.tolist() == [0, 2, 0, 2, 0]
    assert kept.row_end.tolist() == [2, 4, 5]
    assert kept.cut.tolist() == [2.0]


@pytest.mark.parametrize("shift", [0.0, -2.5], ids=["enough", "too few positive"])
@pytest.mark.parametrize("variant", ["batchtopk", "l1", "matryoshka", "topk"])
def test_backends_choose_the_same(kernel_device: torch.device, variant: str, shift: float) -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(6, 30, generator=generator) + shift
    norm = torch.rand(30, generator=generator) + 0.5
    expected, cut = Selector(VARIANTS[variant], 4).select(scores, norm, sparse=False)
    assert isinstance(expected, DenseActive)
    for backend, device in (("embedding_bag", torch.device("cpu")), ("triton", kernel_device)):
        selector = Selector(VARIANTS[variant], 4, backend)
        active, found_cut = selector.select(scores.to(device), norm.to(device), sparse=True)
        unit = torch.eye(30, device=device)
        torch.testing.assert_close(active.decode(unit).cpu(), expected.values)
        assert torch.equal(active.column_count().cpu(), expected.column_count())
        assert (found_cut is None) == (cut is None)
        if cut is not None and found_cut is not None:
            assert float(found_cut) == float(cut)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("shift", [0.0, -2.5], ids=["enough", "too few positive"])
def test_a_known_cut_keeps_what_the_search_for_it_keeps(
    kernel_device: torch.device, shift: float, per_row: bool
) -> None:
    from sae_training.kernels.selection import at_or_above, highest

    scores = (torch.randn(6, 30, generator=torch.Generator().manual_seed(5)) + shift).to(kernel_device)
    scores[2, 3:9] = scores[4, 5]  # ties
    expected = highest(scores, 4 if per_row else 24, per_row=per_row)
    kept = at_or_above(scores, expected.cut, 4 if per_row else 24, per_row=per_row)
    for name in ("scores", "rows", "columns", "row_begin", "row_end", "cut"):
        assert torch.equal(getattr(kept, name), getattr(expected, name)), name
    half = at_or_above(scores[:, :15].contiguous(), expected.cut, 4 if per_row else 24, per_row=per_row)
    assert int((half.columns < 15).sum()) == int((expected.columns < 15).sum())


def test_ties_at_the_cut_are_all_kept_on_a_cpu_and_counted_out_on_the_device(kernel_device: torch.device) -> None:
    scores, norm = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.5, 1.0]]), torch.ones(3)
    n_active = []
    for backend, device in (("embedding_bag", torch.device("cpu")), ("triton", kernel_device)):
        selector = Selector(VARIANTS["batchtopk"], 1, backend)
        active, cut = selector.select(scores.to(device), norm.to(device), sparse=True)
        assert cut is not None
        assert float(cut) == 1.0
        n_active.append(int(active.column_count().sum()))
    assert n_active == [5, 2]
