"""The accumulators against the definitions, on data with a large mean and batches of unequal size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sae_training.reconstruction import ReconstructionSums, VarianceSums, batch_fve, squared_norms

WIDTHS = (3, 5)
SIZES = (1, 17, 12)


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Activations [30 8] about a mean of 100, reconstruction errors, and activations of four latents, one dead."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 8, generator=generator, dtype=torch.float64) + 100.0
    error = 0.5 * torch.randn(30, 8, generator=generator, dtype=torch.float64)
    feature_acts = torch.relu(torch.randn(30, 4, generator=generator))
    feature_acts[:, 2] = 0.0
    return x, error, feature_acts


def accumulate(variance: Tensor | None = None) -> ReconstructionSums:
    sums = ReconstructionSums(WIDTHS)
    _, error, feature_acts = data()
    rows = (None,) * len(SIZES) if variance is None else variance.split(SIZES)
    for batch, acts, part in zip(error.split(SIZES), feature_acts.split(SIZES), rows, strict=True):
        sums.update(acts, batch, part)
    return sums


@pytest.mark.parametrize("known_mean", [False, True])
def test_variance_is_about_the_mean_of_all_tokens(known_mean: bool) -> None:
    x, _, _ = data()
    sums = VarianceSums(WIDTHS, x.mean(dim=0) if known_mean else None)
    for batch in (x[:0], *x.split(SIZES)):
        sums.update(batch)
    expected = [part.square().sum().item() for part in (x - x.mean(dim=0)).split(WIDTHS, dim=1)]
    assert sums.compute().tolist() == pytest.approx(expected, rel=1e-12)
    assert sums.n_tokens == 30


def test_columns_kept_apart_add_up_to_sources() -> None:
    x, _, _ = data()
    by_source, by_column = VarianceSums(WIDTHS), VarianceSums([1] * 8)
    for batch in x.split(SIZES):
        by_source.update(batch)
        by_column.update(batch)
    columns = by_column.compute().split(WIDTHS)
    assert [part.sum().item() for part in columns] == pytest.approx(by_source.compute().tolist(), rel=1e-12)


@pytest.mark.parametrize("per_token", [False, True])
def test_measures_equal_their_definitions(per_token: bool) -> None:
    x, error, feature_acts = data()
    rows = squared_norms(x - x.mean(dim=0), WIDTHS)
    sums = accumulate(rows if per_token else None)
    left = squared_norms(error, WIDTHS)
    assert sums.mse.tolist() == pytest.approx(left.mean(dim=0).tolist())
    assert sums.fve(rows.sum(dim=0)).tolist() == pytest.approx((1 - left.sum(dim=0) / rows.sum(dim=0)).tolist())
    assert sums.fve(rows.sum(dim=0)).tolist() == pytest.approx(batch_fve(x, error, WIDTHS).tolist())
    expected = (1 - left / rows).mean(dim=0).tolist() if per_token else [math.nan] * 2
    assert sums.fve_per_token.tolist() == pytest.approx(expected, nan_ok=True)
    assert sums.l0 == pytest.approx(float((feature_acts > 0).sum(dim=1).double().mean()))
    assert sums.density.tolist() == pytest.approx((feature_acts > 0).double().mean(dim=0).tolist())
    assert sums.dead_frac == 0.25
    assert sums.n_tokens == 30


def test_one_source_needs_no_widths() -> None:
    _, error, feature_acts = data()
    sums = ReconstructionSums()
    sums.update(feature_acts, error)
    assert sums.mse.tolist() == pytest.approx([error.square().sum().item() / 30])
    assert sums.fve(torch.tensor(0.0)).isnan().all()


def test_counts_are_exact_beyond_float32() -> None:
    sums = ReconstructionSums()
    sums.active = torch.tensor([2**24 + 1])
    sums.n_tokens = 2**24 + 1
    sums.update(torch.ones(1, 1), torch.zeros(1, 1))
    assert sums.l0 == 1.0
    assert int(sums.active) == 2**24 + 2
