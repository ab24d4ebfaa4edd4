"""One model's slice opens in stock sae-lens and computes the documented read-out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_training import Crosscoder, CrosscoderConfig, SaeTrainingError
from sae_training.variants import VARIANTS


def trained_like(variant: str, widths: int | tuple[int, ...] = 6, **settings: object) -> Crosscoder:
    config = CrosscoderConfig(
        n_models=3, d_model=widths, d_sae=20, k=4, variant=variant, model_names=("a", "b", "c"), **settings
    )
    crosscoder = Crosscoder(config)
    masks = [
        parameter != 0 for parameter in (crosscoder.encoder, crosscoder.decoder)
    ]  # dedicated latents keep their zeros
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        crosscoder.encoder.mul_(masks[0])
        crosscoder.decoder.mul_(masks[1])
    crosscoder.set_scale([0.5, 3.0, 20.0])
    if crosscoder.threshold.ndim:
        crosscoder.threshold.copy_(torch.rand(20, generator=generator) * 8)
    elif variant in ("batchtopk", "matryoshka"):
        crosscoder.threshold.fill_(6.0)
    return crosscoder


def slots(crosscoder: Crosscoder, raw: Tensor, readout: str) -> Tensor:
    """Input of the encoder in the read-out of model b, with the models side by side."""
    if readout == "swap":  # every slot gets what the slot of b gets
        return torch.cat([raw * (scale / crosscoder.scale[1]) for scale in crosscoder.scale], dim=1)
    inputs = torch.zeros(len(raw), crosscoder.config.d_all, dtype=raw.dtype)
    inputs[:, crosscoder.columns("b")] = raw
    return inputs


def check(crosscoder: Crosscoder, folder: Path, readout: str, tolerance: float = 1e-4) -> None:
    from sae_lens import SAE

    width = crosscoder.config.widths[1]
    raw = 3.0 * torch.randn(40, width, generator=torch.Generator().manual_seed(2)).to(crosscoder.decoder.dtype)
    crosscoder.to_sae("b", readout=readout, out=folder / "slice")
    sae = SAE.load_from_disk(folder / "slice")
    with torch.no_grad():
        expected = crosscoder.encode(slots(crosscoder, raw, readout))
        latents = sae.encode(raw)
        in_sae_units = expected * crosscoder.feature_norm() if crosscoder.config.variant == "topk" else expected
        assert torch.equal(latents > 0, expected > 0)
        assert 0 < (expected > 0).sum() < expected.numel()
        torch.testing.assert_close(latents, in_sae_units, rtol=tolerance, atol=tolerance)
        decoded = crosscoder.decode_model(expected, "b")
        torch.testing.assert_close(sae.decode(latents), decoded, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("readout", ["single", "swap"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_slice_equals_the_readout_of_the_crosscoder(tmp_path: Path, variant: str, readout: str) -> None:
    check(trained_like(variant), tmp_path, readout)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_slice_of_models_of_different_widths(tmp_path: Path, variant: str) -> None:
    check(trained_like(variant, (4, 6, 9)), tmp_path, "single")


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_slice_with_dedicated_latents(tmp_path: Path, variant: str) -> None:
    check(trained_like(variant, n_dedicated=(3, 4, 2)), tmp_path, "single")


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_slice_of_double_precision_is_exact(tmp_path: Path, variant: str) -> None:
    crosscoder = trained_like(variant).double()
    assert crosscoder.to_sae(0).W_enc.dtype == torch.float64
    check(crosscoder, tmp_path, "swap", tolerance=1e-12)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_latents_without_decoders_are_never_active_and_make_no_nan(tmp_path: Path, variant: str) -> None:
    crosscoder = trained_like(variant)
    with torch.no_grad():
        crosscoder.decoder[5:8] = 0.0
        crosscoder.b_enc[5:8] = 50.0
    check(crosscoder, tmp_path, "swap")
    sae = crosscoder.to_sae("b")
    assert not any(bool(torch.isnan(tensor).any()) for tensor in sae.state_dict().values())


def test_the_slice_says_where_it_comes_from(tmp_path: Path) -> None:
    from sae_lens import SAE

    crosscoder = trained_like("l1")
    crosscoder.to_sae("c", readout="swap", out=tmp_path)
    metadata = SAE.load_from_disk(tmp_path).cfg.metadata
    assert (metadata.crosscoder_model, metadata.crosscoder_readout) == ("c", "swap")
    assert metadata.crosscoder_fingerprint == crosscoder.fingerprint


def test_a_dictionary_of_several_sites_is_refused() -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=4, d_sae=8, k=2, sites=("x", "y")))
    with pytest.raises(SaeTrainingError, match="2 sites"):
        crosscoder.to_sae("model_0")


def test_swap_needs_one_width() -> None:
    with pytest.raises(SaeTrainingError, match=r"'swap'.*\(2, 3, 4\)"):
        trained_like("l1", (2, 3, 4)).to_sae(0, readout="swap")
