"""Metrics by hand and against a second implementation."""

from __future__ import annotations

import math

import pytest
import torch

from sae_training import Crosscoder, CrosscoderConfig, SaeTrainingError, evaluate


def identity_like() -> Crosscoder:
    """Two models of width 1; latent 0 copies the first model's positive activation, latent 1 never fires."""
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=1, d_sae=2, k=1, model_names=("base", "rl")))
    with torch.no_grad():
        crosscoder.encoder.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        crosscoder.decoder.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        crosscoder.b_dec_flat.copy_(torch.tensor([0.0, 3.0]))
    crosscoder.set_scale([1.0, 1.0])
    return crosscoder


X = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]], [[-2.0], [6.0]]])


def test_by_hand() -> None:
    metrics = evaluate(identity_like(), [X])
    # base: x = 1, 3, -2, x_hat = 1, 3, 0; mean 2/3; sum of squares about it 1/9 + 49/9 + 64/9 = 114/9; left 4
    assert metrics.fve["base"] == pytest.approx(1 - 4 / (114 / 9))
    # rl: x = 2, 4, 6, x_hat = 3; mean 4; total 8; left 1 + 1 + 9 = 11
    assert metrics.fve["rl"] == pytest.approx(1 - 11 / 8)
    assert metrics.fve_all == pytest.approx(1 - 15 / (114 / 9 + 8))
    assert metrics.mse == pytest.approx({"base": 4 / 3, "rl": 11 / 3})
    assert metrics.l0 == pytest.approx(2 / 3)
    assert metrics.dead_frac == 0.5
    assert metrics.density.tolist() == pytest.approx([2 / 3, 0.0])
    assert metrics.n_tokens == 3
    # base per token: 1 - 0, 1 - 0, 1 - 4 / (64/9)
    assert metrics.fve_per_token["base"] == pytest.approx((1 + 1 + 1 - 4 / (64 / 9)) / 3)


@pytest.mark.parametrize("sizes", [(60,), (1, 59), (7, 13, 40), (20, 20, 20)])
def test_nothing_depends_on_the_batches_but_fve_per_token(sizes: tuple[int, ...]) -> None:
    # In float32 the rounding of the products, which may depend on the number of rows, would exceed 1e-9.
    crosscoder = Crosscoder(CrosscoderConfig(n_models=3, d_model=5, d_sae=16, k=3)).double()
    x = torch.randn(60, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 100.0
    whole, parts = evaluate(crosscoder, [x]), evaluate(crosscoder, x.split(list(sizes)))
    assert parts.fve == pytest.approx(whole.fve, rel=1e-9)
    assert parts.mse == pytest.approx(whole.mse, rel=1e-9)
    assert parts.l0 == pytest.approx(whole.l0)
    assert torch.equal(parts.density, whole.density)


def test_variance_is_about_the_mean_not_about_zero() -> None:
    # A dictionary that returns only the mean explains no variance, however large the mean is.
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=4, d_sae=8, k=2)).double()
    x = torch.randn(500, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 50.0
    with torch.no_grad():
        crosscoder.encoder.zero_()
        crosscoder.b_dec_flat.copy_(x.mean(dim=0).flatten())
    metrics = evaluate(crosscoder, [x])
    assert metrics.fve_all == pytest.approx(0.0, abs=1e-12)
    assert metrics.dead_frac == 1.0


@pytest.mark.parametrize("n_models", [2, 3, 4])
def test_every_model_has_its_own_label(n_models: int) -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=n_models, d_model=4, d_sae=8, k=2))
    metrics = evaluate(crosscoder, [torch.randn(9, n_models, 4)])
    assert tuple(metrics.fve) == crosscoder.model_names
    assert len(metrics.fve_per_token) == n_models


def test_constant_model_has_no_variance_to_explain() -> None:
    crosscoder = identity_like()
    x = X.clone()
    x[:, 1] = 5.0
    assert math.isnan(evaluate(crosscoder, [x]).fve["rl"])


def test_different_widths() -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=(2, 5), d_sae=8, k=2))
    assert set(evaluate(crosscoder, [torch.randn(9, 7)]).fve) == {"model_0", "model_1"}


def test_several_sites_have_a_label_each() -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=3, d_sae=8, k=2, sites=("x", "y")))
    metrics = evaluate(crosscoder, [torch.randn(9, 4, 3)])
    assert tuple(metrics.fve) == ("model_0/x", "model_0/y", "model_1/x", "model_1/y")


def test_empty_stream() -> None:
    with pytest.raises(SaeTrainingError, match="empty"):
        evaluate(identity_like(), [])


@pytest.mark.parametrize("first", [True, False])
def test_fve_without_far_tokens_is_that_of_the_ordinary_tokens_alone(first: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=4, d_sae=16, k=4, seed=3))
    crosscoder.set_scale([1.0, 1.0])
    ordinary, far = torch.randn(60, 2, 4, generator=generator), torch.randn(5, 2, 4, generator=generator)
    far[:, 1] *= 1000
    batches = list(ordinary.split(25))
    batches = [far, *batches] if first else [*batches[:-1], torch.cat([far, batches[-1]])]
    alone = evaluate(crosscoder, ordinary.split(25), far_norms=[30.0, 30.0])
    found = evaluate(crosscoder, batches, far_norms=[30.0, 30.0])
    assert alone.fve_ordinary is None
    assert alone.n_far == 0
    assert found.n_far == 5
    assert found.fve_ordinary == pytest.approx(alone.fve, rel=1e-6)
    assert abs(found.fve["model_1"] - alone.fve["model_1"]) > 0.1
    plain = evaluate(crosscoder, batches)
    assert plain.fve == found.fve
    assert plain.fve_ordinary is None
