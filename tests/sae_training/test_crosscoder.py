"""Encoding and decoding: hand-computed values, layouts, scales, and what must not depend on what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sae_training import Crosscoder, CrosscoderConfig, SaeTrainingError
from sae_training.weights import mean_norm_scale

VARIANTS = ("batchtopk", "jumprelu", "l1", "matryoshka", "topk")


def filled(
    widths: int | tuple[int, ...] = 4, n_models: int = 3, variant: str = "batchtopk", seed: int = 0
) -> Crosscoder:
    names = tuple("abcde"[:n_models])
    config = CrosscoderConfig(n_models=n_models, d_model=widths, d_sae=12, k=3, variant=variant, model_names=names)
    crosscoder = Crosscoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    crosscoder.set_scale(torch.rand(n_models, generator=generator) + 0.5)
    crosscoder.threshold.fill_(2.0 if variant in ("batchtopk", "matryoshka") else 0.0)
    if variant == "jumprelu":
        crosscoder.threshold.copy_(torch.arange(1, 13) / 4)
    return crosscoder


def by_hand() -> Crosscoder:
    """Two models of width 1, two latents; scales 2 and 4."""
    config = CrosscoderConfig(n_models=2, d_model=1, d_sae=2, k=1, model_names=("base", "rl"))
    crosscoder = Crosscoder(config)
    with torch.no_grad():
        crosscoder.encoder.copy_(torch.tensor([[1.0, 2.0], [1.0, -1.0]]))
        crosscoder.decoder.copy_(torch.tensor([[3.0, -4.0], [0.5, 0.0]]))
        crosscoder.b_enc.copy_(torch.tensor([1.0, 0.5]))
        crosscoder.b_dec_flat.copy_(torch.tensor([10.0, 20.0]))
    crosscoder.set_scale([2.0, 4.0])
    return crosscoder


def test_encode_by_hand() -> None:
    # x = (6/2, 4/4) = (3, 1); h_0 = 3 + 2*1 + 1 = 6; h_1 = 3 - 1 + 0.5 = 2.5
    latents = by_hand().encode(torch.tensor([[[6.0], [4.0]]]))
    torch.testing.assert_close(latents, torch.tensor([[6.0, 2.5]]))


def test_threshold_applies_to_activation_times_sum_of_decoder_norms() -> None:
    crosscoder = by_hand()
    # n_0 = |3| + |-4| = 7, score 6*7 = 42; n_1 = 0.5, score 2.5*0.5 = 1.25
    torch.testing.assert_close(crosscoder.feature_norm(), torch.tensor([7.0, 0.5]))
    for threshold, expected in ((1.2, [6.0, 2.5]), (1.3, [6.0, 0.0]), (41.9, [6.0, 0.0]), (42.1, [0.0, 0.0])):
        crosscoder.threshold.fill_(threshold)
        torch.testing.assert_close(crosscoder.encode(torch.tensor([[[6.0], [4.0]]])), torch.tensor([expected]))


def test_jumprelu_has_a_threshold_per_latent() -> None:
    config = CrosscoderConfig(n_models=2, d_model=1, d_sae=2, variant="jumprelu", initial_threshold=0.25)
    crosscoder = Crosscoder(config)
    assert crosscoder.threshold.tolist() == [0.25, 0.25]
    crosscoder.load_state_dict({**by_hand().state_dict(), "threshold": torch.tensor([0.0, 0.0])})
    x = torch.tensor([[[6.0], [4.0]]])  # scores 42 and 1.25, as above
    for thresholds, expected in (([41.0, 1.2], [6.0, 2.5]), ([43.0, 1.2], [0.0, 2.5]), ([41.0, 1.25], [6.0, 0.0])):
        crosscoder.threshold.copy_(torch.tensor(thresholds))
        torch.testing.assert_close(crosscoder.encode(x), torch.tensor([expected]))


def test_several_sites_are_sources_of_one_dictionary() -> None:
    names = ("base", "rl")
    config = CrosscoderConfig(n_models=2, d_model=4, d_sae=12, k=3, model_names=names, sites=("x", "y"))
    crosscoder = Crosscoder(config)
    x = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0))
    assert crosscoder(x).shape == (5, 4, 4)
    assert torch.equal(crosscoder.encode(x.flatten(1)), crosscoder.encode(x))
    assert crosscoder.columns("rl/x") == slice(8, 12)
    latents = crosscoder.encode(x)
    torch.testing.assert_close(crosscoder.decode_model(latents, "rl/x"), crosscoder(x)[:, 2])
    with pytest.raises(SaeTrainingError, match=r"'rl/z'.*'rl/"):
        crosscoder.encoder_of("rl/z")
    with pytest.raises(SaeTrainingError, match=r"\[5, 2, 4\].*base/x, base/y, rl/x, rl/y.*\[batch, 4, 4\]"):
        crosscoder.encode(x[:, :2])
    with pytest.raises(SaeTrainingError, match="4 sources"):
        crosscoder.set_scale([1.0, 1.0])
    with pytest.raises(SaeTrainingError, match=r"2 sites.*\(x, y\)"):
        crosscoder.model_index("rl")


def test_norms_of_several_sites_are_pooled_per_model_by_hand() -> None:
    config = CrosscoderConfig(n_models=2, d_model=2, d_sae=1, k=1, sites=("x", "y"))
    crosscoder = Crosscoder(config)
    with torch.no_grad():
        crosscoder.decoder.copy_(torch.tensor([[3.0, 4.0, 0.0, 12.0, 1.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(crosscoder.decoder_norm(2), torch.tensor([[5.0, 12.0, 1.0, 0.0]]))
    torch.testing.assert_close(crosscoder.model_norm(2), torch.tensor([[13.0, 1.0]]))
    torch.testing.assert_close(crosscoder.model_norm(1), torch.tensor([[19.0, 1.0]]))
    assert torch.equal(filled().model_norm(1), filled().decoder_norm(1))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_dedicated": (1, 2), "sites": ("x", "y")},
        {"variant": "l1", "n_dedicated": (1, 2), "n_shared": 3, "shared_init": False},
        {"variant": "jumprelu", "n_shared": 3, "sites": ("x", "y"), "shared_init": False},
    ],
    ids=["dedicated, sites", "dedicated, shared", "shared, sites"],
)
def test_the_start_has_zeros_and_ties_where_they_belong(changes: dict[str, Any]) -> None:
    config = CrosscoderConfig(**{"n_models": 2, "d_model": 4, "d_sae": 12, "k": 3, **changes})
    decoder = Crosscoder(config).decoder.detach().unflatten(1, (2, -1))
    used = (decoder != 0).all(dim=2)
    n_dedicated = sum(config.n_dedicated)
    expected = [[True, False]] * sum(config.n_dedicated[:1]) + [[False, True]] * sum(config.n_dedicated[1:])
    assert used[:n_dedicated].tolist() == expected
    shared = decoder[config.shared_rows]
    assert shared.shape[0] == config.n_shared
    assert torch.equal(shared[:, 0], shared[:, 1])
    if not config.shared_init:
        rest = decoder[n_dedicated + config.n_shared :]
        assert not bool((rest[:, 0] == rest[:, 1]).any())
    if config.sites:
        assert not bool((decoder[-1, :, :4] == decoder[-1, :, 4:]).any())


@pytest.mark.parametrize("variant", VARIANTS)
def test_permuted_by_hand_and_back(variant: str) -> None:
    crosscoder = filled((2, 3, 4), variant=variant)
    other = crosscoder.permuted([2, 0, 1])
    assert (other.model_names, other.config.widths) == (("c", "a", "b"), (4, 2, 3))
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(3))
    moved = torch.cat([x[:, 5:], x[:, :2], x[:, 2:5]], dim=1)
    torch.testing.assert_close(other.encode(moved), crosscoder.encode(x))
    torch.testing.assert_close(other.decoder_norm(1), crosscoder.decoder_norm(1)[:, [2, 0, 1]])
    assert other.permuted([1, 2, 0]).fingerprint == crosscoder.fingerprint
    with pytest.raises(SaeTrainingError, match=r"order = \[0, 0, 1\].*\b3 models"):
        crosscoder.permuted([0, 0, 1])


def test_decode_by_hand() -> None:
    # x_hat = (2*3 + 4*0.5 + 10, 2*-4 + 20) = (18, 12); in the models' units (2*18, 4*12)
    latents = torch.tensor([[2.0, 4.0]])
    torch.testing.assert_close(by_hand().decode(latents), torch.tensor([[[36.0], [48.0]]]))
    torch.testing.assert_close(by_hand().decode_model(latents, "rl"), torch.tensor([[48.0]]))


def test_decoder_norm_is_in_the_models_own_units() -> None:
    # W_dec[0] = (3, -4) times the scales (2, 4)
    torch.testing.assert_close(by_hand().decoder_norm(1), torch.tensor([[6.0, 16.0], [1.0, 0.0]]))


def test_decoder_norm_of_unequal_widths_is_over_sqrt_width() -> None:
    crosscoder = filled((4, 9), n_models=2)
    with torch.no_grad():
        crosscoder.decoder.fill_(1.0)
    crosscoder.set_scale([1.0, 1.0])
    # L1 norms 4 and 9 over sqrt 4 and 3; L2 norms 2 and 3 over 2 and 3
    torch.testing.assert_close(crosscoder.decoder_norm(1)[0], torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(crosscoder.decoder_norm(2)[0], torch.tensor([1.0, 1.0]))


def test_views_agree_with_the_formula() -> None:
    crosscoder = filled()
    x = torch.randn(7, 3, 4)
    scaled = x / crosscoder.scale[:, None]
    hidden = torch.einsum("bmd,mdf->bf", scaled, crosscoder.W_enc) + crosscoder.b_enc
    torch.testing.assert_close(crosscoder.hidden_pre(x), hidden)
    latents = crosscoder.encode(x)
    x_hat = torch.einsum("bf,fmd->bmd", latents, crosscoder.W_dec) + crosscoder.b_dec
    torch.testing.assert_close(crosscoder.decode(latents), x_hat * crosscoder.scale[:, None])
    for index, name in enumerate(crosscoder.model_names):
        torch.testing.assert_close(crosscoder.decode_model(latents, name), crosscoder.decode(latents)[:, index])


@pytest.mark.parametrize("n_models", [2, 3, 4, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_models(n_models: int, variant: str) -> None:
    crosscoder = filled(n_models=n_models, variant=variant)
    assert crosscoder(torch.randn(6, n_models, 4)).shape == (6, n_models, 4)
    assert crosscoder.decoder_norm(1).shape == (12, n_models)


def test_different_widths_go_side_by_side() -> None:
    crosscoder = filled((2, 3, 4))
    x = torch.randn(5, 9)
    latents = crosscoder.encode(x)
    assert crosscoder.decode(latents).shape == (5, 9)
    torch.testing.assert_close(crosscoder.decode(latents)[:, 2:5], crosscoder.decode_model(latents, "b"))
    with pytest.raises(SaeTrainingError, match=r"W_dec.*decoder_of"):
        _ = crosscoder.W_dec


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n_before=st.integers(0, 9), n_after=st.integers(0, 9))
def test_encoding_a_token_does_not_depend_on_its_batch(variant: str, seed: int, n_before: int, n_after: int) -> None:
    crosscoder = filled(variant=variant, seed=seed % 17).double()
    generator = torch.Generator().manual_seed(seed)
    token = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    before, after = (10 * torch.randn(n, 3, 4, generator=generator, dtype=torch.float64) for n in (n_before, n_after))
    alone = crosscoder.encode(token)[0]
    together = crosscoder.encode(torch.cat((before, token, after)))[n_before]
    assert torch.equal(alone > 0, together > 0)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_permuting_the_models_permutes_the_result_exactly(variant: str, order: list[int], seed: int) -> None:
    # Whole numbers add up exactly in any order, so that equality can be asked for to the bit. One entry per decoder
    # makes its norm a whole number too.
    generator = torch.Generator().manual_seed(seed)
    one, other = filled(n_models=4, variant=variant), filled(n_models=4, variant=variant)
    with torch.no_grad():
        one.encoder.copy_(torch.randint(-4, 5, one.encoder.shape, generator=generator))
        decoder = torch.zeros(12, 4, 4)
        decoder[:, :, 0] = torch.randint(-4, 5, (12, 4), generator=generator)
        one.decoder.copy_(decoder.flatten(1))
        one.b_enc.copy_(torch.randint(-4, 5, one.b_enc.shape, generator=generator))
        one.b_dec_flat.copy_(torch.randint(-4, 5, one.b_dec_flat.shape, generator=generator))
        scale = 2.0 ** torch.randint(-2, 3, (4,), generator=generator)
        one.set_scale(scale)
        other.set_scale(scale[order])
        other.encoder.copy_(one.W_enc[order].permute(2, 0, 1).flatten(1))
        other.decoder.copy_(one.W_dec[:, order].flatten(1))
        other.b_enc.copy_(one.b_enc)
        other.b_dec_flat.copy_(one.b_dec[order].flatten())
    x = torch.randint(-8, 9, (6, 4, 4), generator=generator).float()
    assert torch.equal(other.encode(x[:, order]), one.encode(x))
    assert torch.equal(other(x[:, order]), one(x)[:, order])
    assert torch.equal(other.decoder_norm(1), one.decoder_norm(1)[:, order])


@settings(max_examples=25, deadline=None)
@given(factors=st.tuples(*[st.floats(0.01, 100.0)] * 3))
def test_scale_is_folded_in_and_out(factors: tuple[float, float, float]) -> None:
    plain, scaled = filled(), filled()
    plain.set_scale([1.0, 1.0, 1.0])
    scaled.set_scale(list(factors))
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    units = torch.tensor(factors)[:, None]
    torch.testing.assert_close(scaled.hidden_pre(x * units), plain.hidden_pre(x), rtol=1e-4, atol=1e-4)
    latents = plain.encode(x)
    torch.testing.assert_close(scaled.decode(latents), plain.decode(latents) * units, rtol=1e-5, atol=1e-5)


def test_mean_norm_scale_makes_the_mean_norm_sqrt_width() -> None:
    # norms 3 and 5, mean 4, over sqrt 4 = 2
    x = torch.tensor([[3.0, 0.0, 0.0, 0.0, 1.0], [0.0, 3.0, 4.0, 0.0, 3.0]])
    torch.testing.assert_close(mean_norm_scale(x, (4, 1)), torch.tensor([2.0, 2.0]))


def test_untrained_scale_counts_as_one() -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=3, d_sae=4, k=2))
    assert not crosscoder.has_scale
    assert torch.equal(crosscoder.column_scale(), torch.ones(6))


@pytest.mark.parametrize(
    ("shape", "said"),
    [((5, 2, 4), r"\[5, 2, 4\].*a, b, c.*\[batch, 3, 4\]"), ((5, 3, 7), r"\[5, 3, 7\]"), ((5, 11), r"\[5, 11\]")],
)
def test_wrong_shapes_are_one_sentence(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(SaeTrainingError, match=said):
        filled().encode(torch.zeros(shape))


def test_unknown_model_names_the_nearest() -> None:
    crosscoder = by_hand()
    with pytest.raises(SaeTrainingError, match=r"'bse'.*'base'"):
        crosscoder.encoder_of("bse")
    with pytest.raises(SaeTrainingError, match=r"model 2.* 0 to 1"):
        crosscoder.model_index(2)


@pytest.mark.parametrize("scale", [[1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0]])
def test_bad_scale_is_refused(scale: list[float]) -> None:
    with pytest.raises(SaeTrainingError, match="scale"):
        filled().set_scale(scale)


def test_mean_norm_scale_leaves_far_tokens_out_and_changes_nothing_without_them() -> None:
    x = torch.randn(1001, 6, generator=torch.Generator().manual_seed(0))
    plain = torch.stack([part.double().norm(dim=1).mean() / 3**0.5 for part in x.split(3, dim=1)]).float()
    assert torch.equal(mean_norm_scale(x, (3, 3)), plain)
    sink = torch.cat([x, torch.full((20, 6), 1000.0)])
    torch.testing.assert_close(mean_norm_scale(sink, (3, 3)), plain, rtol=1e-9, atol=0)
    assert torch.equal(mean_norm_scale(torch.tensor([[0.0], [0.0], [3.0]]), (1,)), torch.ones(1))


def test_the_rule_of_the_tokens_is_kept_in_the_files_only_where_there_is_one(tmp_path: Path) -> None:
    plain = CrosscoderConfig(n_models=2, d_model=3, d_sae=4, k=2)
    assert not {"norm_limits", "drop_first_positions"} & plain.model_dump().keys()
    crosscoder = Crosscoder(plain.replace(drop_first_positions=1, norm_limits=(2.0, 3.0)))
    crosscoder.save(tmp_path)
    assert Crosscoder.load(tmp_path).config == crosscoder.config
    assert crosscoder.permuted([1, 0]).config.norm_limits == (3.0, 2.0)
    assert crosscoder.permuted([1, 0]).config.drop_first_positions == 1
    with pytest.raises(SaeTrainingError, match="norm_limits has 1 numbers for 2 sources"):
        plain.replace(norm_limits=(2.0,))
    with pytest.raises(SaeTrainingError, match="must be positive"):
        plain.replace(norm_limits=(2.0, 0.0))
