"""Dictionaries of the difference between two models, and the delta loss, on planted features."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from sae_training import (
    Crosscoder,
    CrosscoderConfig,
    PlantedConfig,
    PlantedFeatures,
    SaeTrainingError,
    TrainConfig,
    evaluate,
    train,
)
from sae_training.step import delta_loss

PAIR = PlantedConfig(n_models=2, d_model=24, n_shared=40, n_specific=5, mean_norm=2.0)


def fit(truth: PlantedFeatures, *, steps: int = 120, delta: float = 0.0, **shape: Any) -> Crosscoder:
    shape = {"n_models": 2, "d_model": truth.config.d_model, "model_names": ("base", "rl"), **shape}
    crosscoder = Crosscoder(CrosscoderConfig(**shape))
    training = TrainConfig(n_tokens=steps * 256, batch_size=256, lr=1e-2, log_every=steps, delta_coefficient=delta)
    train(crosscoder, truth.batches(256, seed=1), training)
    return crosscoder


def held_out(truth: PlantedFeatures) -> torch.Tensor:
    return torch.cat(list(truth.batches(512, seed=2, n_batches=8)))


def test_a_dictionary_of_the_difference_finds_what_differs_and_nothing_else(tmp_path: Path) -> None:
    truth = PlantedFeatures.make(PAIR)
    crosscoder = fit(truth, d_sae=16, k=1, reads="difference")
    # a feature of rl points along the difference rl − base, one of base against it; shared features are in neither
    specific = truth.owner >= 0
    owner = truth.owner[specific]
    wanted = truth.directions[specific, owner] * (2.0 * owner - 1)[:, None]
    cosine = normalize(wanted, dim=1) @ normalize(crosscoder.W_dec[:, 1].detach(), dim=1).T
    assert float(cosine.amax(dim=1).min()) > 0.97
    metrics = evaluate(crosscoder, truth.batches(256, seed=2, n_batches=10))
    assert metrics.fve["rl"] == pytest.approx(metrics.fve_all)
    assert metrics.fve_all > 0.9
    assert math.isnan(metrics.fve["base"])

    assert torch.equal(crosscoder.encoder_of("base"), -crosscoder.encoder_of("rl"))
    assert not bool(crosscoder.own_decoder("base").any() or crosscoder.own_bias("base").any())
    assert crosscoder.scale[0] == crosscoder.scale[1]
    x = held_out(truth)
    acts, both = crosscoder.encode(x), torch.randn(len(x), 1, 24)
    torch.testing.assert_close(crosscoder.encode(x + both), acts, rtol=1e-4, atol=1e-4)
    difference = x[:, 1] - x[:, 0]
    assert torch.equal(crosscoder.target(x), torch.cat([0 * difference, difference], dim=1))
    assert torch.equal(crosscoder.target(crosscoder.target(x)), crosscoder.target(x))

    crosscoder.save(tmp_path)
    again = Crosscoder.load(tmp_path)
    assert again.config.reads == "difference"
    assert again.fingerprint == crosscoder.fingerprint
    assert torch.equal(again.encode(x), acts)
    with pytest.raises(SaeTrainingError, match="permuted needs a dictionary of the activations"):
        crosscoder.permuted((1, 0))


def test_it_equals_an_sae_on_the_difference_written_by_hand() -> None:
    truth = PlantedFeatures.make(PAIR)
    crosscoder = fit(truth, steps=40, d_sae=16, k=2, reads="difference")
    x = held_out(truth)
    difference, scale = x[:, 1] - x[:, 0], crosscoder.scale[1]
    h = difference @ (crosscoder.encoder_of("rl") / scale).T + crosscoder.b_enc
    acts = crosscoder.activate(h)
    torch.testing.assert_close(acts, crosscoder.encode(x), rtol=1e-4, atol=1e-4)
    written = acts @ crosscoder.own_decoder("rl") + crosscoder.own_bias("rl")
    torch.testing.assert_close(written, crosscoder.decode(acts)[:, 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_models": 3, "model_names": ("base", "sft", "rl")}, "two models, not base, sft, rl"),
        ({"d_model": (4, 6)}, r"one width.*\[4, 6\]"),
        ({"variant": "l1", "n_shared": 2}, "n_shared and n_dedicated"),
        ({"n_dedicated": (1, 0)}, "n_shared and n_dedicated"),
        ({"reads": "sum"}, "reads = 'sum'"),
    ],
)
def test_mistakes_are_said(changes: dict[str, Any], said: str) -> None:
    shape = {"n_models": 2, "d_model": 4, "d_sae": 8, "k": 2, "reads": "difference", **changes}
    with pytest.raises(SaeTrainingError, match=said):
        CrosscoderConfig(**shape)


def test_settings_not_in_use_are_not_written() -> None:
    config = CrosscoderConfig(n_models=2, d_model=4, d_sae=8, k=2)
    assert not {"reads", "norm_limits", "drop_first_positions"} & set(config.model_dump(mode="json"))
    assert "delta_coefficient" not in TrainConfig(n_tokens=10).model_dump(mode="json")
    assert TrainConfig(n_tokens=10, delta_coefficient=0.5).model_dump(mode="json")["delta_coefficient"] == 0.5


def test_no_slice_of_a_difference_is_exported() -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=4, d_sae=8, k=2, reads="difference"))
    with pytest.raises(SaeTrainingError, match="to_sae needs a dictionary of the activations of each model"):
        crosscoder.to_sae(0)


def test_the_delta_loss_by_hand() -> None:
    error = torch.tensor([[1.0, 0.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    value, gradient = delta_loss(error, torch.ones(2, 1))
    assert float(value.detach()) == pytest.approx((1 - 3) ** 2 + 4**2)
    (expected,) = torch.autograd.grad((error[:, :2] - error[:, 2:]).square().sum(), error)
    torch.testing.assert_close(gradient, expected)
    # three models: the mean over the three pairs, in units that all models share
    three, units = torch.randn(5, 6, dtype=torch.float64), torch.tensor([[0.5], [1.0], [1.5]], dtype=torch.float64)
    parts = [part * unit for part, unit in zip(three.split(2, dim=1), units.flatten(), strict=True)]
    pairs = [(parts[m] - parts[n]).square().sum() for m, n in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(delta_loss(three, units)[0], torch.stack(pairs).mean())


def test_the_delta_loss_spends_a_small_dictionary_on_what_differs() -> None:
    # 40 shared features and 10 of one model in 24 latents: without the loss most latents go to what is shared
    truth = PlantedFeatures.make(PAIR.replace(amplitude=(0.5, 1.0)))
    x, left = held_out(truth), {}
    for delta in (0.0, 10.0):
        crosscoder = fit(truth, d_sae=24, k=4, delta=delta)
        x_hat = crosscoder(x).detach()
        difference, found = x[:, 1] - x[:, 0], x_hat[:, 1] - x_hat[:, 0]
        left[delta] = float((difference - found).square().sum() / (difference - difference.mean(0)).square().sum())
    assert left[10.0] < 0.5 * left[0.0]


def test_models_of_different_widths_have_no_delta_loss() -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=(4, 6), d_sae=8, k=2))
    with pytest.raises(SaeTrainingError, match=r"delta_coefficient needs models of one width.*\[4, 6\]"):
        train(crosscoder, [torch.randn(4, 10)], TrainConfig(n_tokens=4, delta_coefficient=1.0))
