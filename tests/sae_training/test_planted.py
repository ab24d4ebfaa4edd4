"""Planted features are found and classified correctly, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_training import (
    Crosscoder,
    CrosscoderConfig,
    PlantedConfig,
    PlantedFeatures,
    SaeTrainingError,
    TrainConfig,
    evaluate,
    recovery,
    train,
)
from sae_training.reconstruction import Metrics


def fit(
    truth: PlantedFeatures,
    *,
    d_sae: int = 64,
    k: int = 5,
    steps: int = 400,
    variant: str = "batchtopk",
    l1: float = 1.0,
    **shape: Any,
) -> tuple[Crosscoder, Metrics]:
    config = truth.config
    shape = {"n_models": config.n_models, "d_model": config.d_model, "d_sae": d_sae, "k": k, **shape}
    crosscoder = Crosscoder(CrosscoderConfig(**shape, variant=variant))
    training = TrainConfig(n_tokens=steps * 512, batch_size=512, lr=1e-2, log_every=steps, l1_coefficient=l1)
    train(crosscoder, truth.batches(512, seed=1), training)
    return crosscoder, evaluate(crosscoder, truth.batches(512, seed=2, n_batches=20))


@pytest.mark.parametrize(("variant", "l1"), [("batchtopk", 0.0), ("jumprelu", 0.0), ("topk", 0.0), ("l1", 0.5)])
def test_specific_features_are_found_and_no_shared_one_is_called_specific(variant: str, l1: float) -> None:
    # A small version of the reference measurements: 48 features of width 32, 64 latents, batches of 512.
    truth = PlantedFeatures.make(PlantedConfig(n_shared=36, n_specific=4))
    crosscoder, metrics = fit(truth, variant=variant, l1=l1)
    found = recovery(crosscoder, truth, metrics.density)
    assert found.found_specific(truth).sum() == 12
    assert found.said_specific.sum(dim=0).tolist() == [4, 4, 4]
    assert float(found.cosine.mean()) >= 0.99
    shared = torch.tensor([kind == "shared" for kind in truth.kinds])
    assert float((found.share[shared] - 1 / 3).abs().max()) < 0.05
    assert metrics.fve_all > 0.85


def test_one_dictionary_of_two_sites_finds_what_is_specific_to_a_model_at_both() -> None:
    truth = PlantedFeatures.make(PlantedConfig(n_sites=2, d_model=24, n_shared=36, n_specific=4))
    crosscoder, metrics = fit(truth, sites=("early", "late"))
    found = recovery(crosscoder, truth, metrics.density)
    assert found.found_specific(truth).sum() == 12
    assert found.said_specific.sum(dim=0).tolist() == [4, 4, 4]
    assert float(found.cosine.mean()) >= 0.99
    shares = crosscoder.model_norm(2) / crosscoder.model_norm(2).sum(dim=1, keepdim=True)
    owner = truth.owner[truth.owner >= 0]
    assert float(shares[found.match[truth.owner >= 0], owner].min()) > 0.9
    # By source: a shared feature has a sixth of its norm in each of the six sources.
    norm = crosscoder.decoder_norm(2)[found.match[truth.owner < 0]]
    assert float((norm / norm.sum(dim=1, keepdim=True) - 1 / 6).abs().max()) < 0.05


def test_latents_designated_as_shared_leave_room_for_those_of_one_model() -> None:
    # 8 dense directions that all models share take two latents each, so 40 latents are too few for them and 36 features.
    truth = PlantedFeatures.make(PlantedConfig(n_shared=24, n_specific=4, n_dense=8))
    found = {}
    for n_shared in (0, 16):
        crosscoder, metrics = fit(truth, d_sae=40, variant="l1", l1=0.5, n_shared=n_shared)
        found[n_shared] = recovery(crosscoder, truth, metrics.density)
        wrong = found[n_shared].said_specific[found[n_shared].match[truth.owner < 0]]
        assert not bool(wrong.any())
    n_found = {n_shared: int(each.found_specific(truth).sum()) for n_shared, each in found.items()}
    assert n_found[0] <= 3
    assert n_found[16] >= n_found[0] + 3


def test_rotated_features_have_another_direction_in_each_model() -> None:
    truth = PlantedFeatures.make(PlantedConfig(n_shared=20, n_specific=2, n_rotated=10, density=0.08))
    crosscoder, metrics = fit(truth, d_sae=48, k=3)
    found = recovery(crosscoder, truth, metrics.density)
    rotated = torch.tensor([kind == "rotated" for kind in truth.kinds])
    whole = rotated & (found.cosine > 0.97)
    assert whole.sum() >= 9  # one may be split into a latent per direction
    decoders = torch.nn.functional.normalize(crosscoder.W_dec[found.match[whole]].detach(), dim=2)
    between = torch.einsum("fmd,fnd->fmn", decoders, decoders)[:, 0, 1]
    directions = truth.directions[whole]
    torch.testing.assert_close(between, (directions[:, 0] * directions[:, 1]).sum(dim=1), atol=0.1, rtol=0)


def test_emerging_features_show_their_strength_in_every_checkpoint() -> None:
    truth = PlantedFeatures.make(PlantedConfig(n_models=4, n_shared=24, n_specific=0, n_emerging=6))
    crosscoder, metrics = fit(truth, d_sae=48, k=3)
    found = recovery(crosscoder, truth, metrics.density)
    emerging = torch.tensor([kind == "emerging" for kind in truth.kinds])
    assert float(found.cosine[emerging].min()) > 0.97
    expected = truth.strength[emerging] / truth.strength[emerging].sum(dim=1, keepdim=True)
    torch.testing.assert_close(found.share[emerging], expected, atol=0.06, rtol=0)


def test_scales_and_means_of_the_models_do_not_matter() -> None:
    config = PlantedConfig(n_shared=36, n_specific=4, model_scale=(0.01, 1.0, 50.0), mean_norm=3.0, noise=0.01)
    truth = PlantedFeatures.make(config)
    crosscoder, metrics = fit(truth)
    found = recovery(crosscoder, truth, metrics.density)
    assert found.found_specific(truth).sum() == 12
    assert min(metrics.fve.values()) > 0.9


@pytest.mark.parametrize("shared_init", [True, False])
def test_identical_models_give_equal_shares_and_nothing_specific(shared_init: bool) -> None:
    truth = PlantedFeatures.make(PlantedConfig(n_shared=48, n_specific=0))
    crosscoder = Crosscoder(CrosscoderConfig(n_models=3, d_model=32, d_sae=64, k=5, shared_init=shared_init))
    train(crosscoder, truth.batches(512, seed=1), TrainConfig(n_tokens=600 * 512, batch_size=512, lr=3e-3))
    metrics = evaluate(crosscoder, truth.batches(512, seed=2, n_batches=10))
    norm = crosscoder.decoder_norm(1)
    mas = norm / norm.sum(dim=1, keepdim=True)
    living = metrics.density > 0.01
    assert living.sum() > 40
    assert float((mas[living] - 1 / 3).abs().max()) < 1e-3
    assert recovery(crosscoder, truth, metrics.density).said_specific.sum() == 0


@pytest.mark.parametrize("variant", ["batchtopk", "jumprelu", "l1"])
def test_dedicated_latents_stay_with_their_model(variant: str) -> None:
    truth = PlantedFeatures.make(PlantedConfig(n_shared=20, n_specific=4))
    crosscoder = Crosscoder(
        CrosscoderConfig(n_models=3, d_model=32, d_sae=48, k=3, variant=variant, n_dedicated=(8, 0, 6))
    )
    train(crosscoder, truth.batches(512), TrainConfig(n_tokens=100 * 512, batch_size=512, lr=1e-2))
    for weights in (crosscoder.W_dec, crosscoder.W_enc.permute(2, 0, 1)):
        used = (weights != 0).any(dim=2)
        assert used[:8].tolist() == [[True, False, False]] * 8
        assert used[8:14].tolist() == [[False, False, True]] * 6
        assert bool(used[14:].all())
    assert float(evaluate(crosscoder, truth.batches(512, seed=9, n_batches=2)).density[:14].max()) > 0


def test_tokens_are_made_of_the_features() -> None:
    truth = PlantedFeatures.make(PlantedConfig(n_models=2, d_model=8, n_shared=3, n_specific=(1, 2), n_rotated=2))
    assert truth.kinds == ("shared",) * 3 + ("specific",) * 3 + ("rotated",) * 2
    assert truth.owner.tolist() == [-1, -1, -1, 0, 1, 1, -1, -1]
    features = truth.feature_acts(50, seed=4)
    expected = torch.zeros(50, 2, 8)
    for place in range(8):
        for model in range(2):
            amount = features[:, place] * truth.strength[place, model]
            expected[:, model] += amount[:, None] * truth.directions[place, model]
    torch.testing.assert_close(truth.tokens(50, seed=4), expected)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_density_and_correlation_are_as_asked(correlation: float) -> None:
    config = PlantedConfig(n_shared=8, n_specific=0, density=0.2, correlation=correlation, group_size=2)
    active = (PlantedFeatures.make(config).feature_acts(20000, seed=0) > 0).double()
    assert active.mean(dim=0).tolist() == pytest.approx([0.2] * 8, abs=0.02)
    together = float((active[:, 0] * active[:, 1]).mean())
    apart = float((active[:, 0] * active[:, 2]).mean())
    assert apart == pytest.approx(0.04, abs=0.01)
    assert (together > 0.08) == (correlation > 0)


def test_dense_directions_are_the_same_in_all_models() -> None:
    plain, dense = (PlantedFeatures.make(PlantedConfig(n_dense=n, model_scale=(1.0, 2.0, 3.0))) for n in (0, 2))
    assert torch.equal(plain.directions, dense.directions)
    added = (dense.tokens(400, seed=1) - plain.tokens(400, seed=1)) / torch.tensor([1.0, 2.0, 3.0])[:, None]
    torch.testing.assert_close(added[:, 0], added[:, 1], atol=1e-5, rtol=0)
    assert int(torch.linalg.matrix_rank(added[:, 2], atol=1e-3)) == 2
    assert float((added[:, 0] @ dense.dense[0, 0]).std()) == pytest.approx(0.5, rel=0.2)


def test_stream_position_can_be_saved() -> None:
    truth = PlantedFeatures.make(PlantedConfig())
    stream = truth.batches(4, seed=3)
    drawn = [batch for batch, _ in zip(stream, range(4), strict=False)]
    other = truth.batches(4, seed=3)
    other.load_state_dict({"number": 2})
    assert torch.equal(next(iter(other)), drawn[2])


def test_nothing_planted_is_refused() -> None:
    with pytest.raises(SaeTrainingError, match=r"n_shared.*n_emerging"):
        PlantedConfig(n_shared=0, n_specific=0)
    with pytest.raises(SaeTrainingError, match=r"n_specific.* 2 .*n_models = 3"):
        PlantedConfig(n_specific=(1, 2))
