"""One model's slice opens in stock sae-lens and computes the documented read-out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_training import Crosscoder, CrosscoderConfig, SaeTrainingError


def trained_like(variant: str, widths: int | tuple[int, ...] = 6) -> Crosscoder:
    config = CrosscoderConfig(n_models=3, d_model=widths, d_sae=20, k=4, variant=variant, model_names=("a", "b", "c"))
    crosscoder = Crosscoder(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    crosscoder.set_scale([0.5, 3.0, 20.0])
    crosscoder.threshold.fill_(6.0 if variant == "batchtopk" else 0.0)
    if variant == "jumprelu":
        crosscoder.threshold.copy_(torch.linspace(1.0, 12.0, 20))
    return crosscoder


@pytest.mark.parametrize("readout", ["single", "swap"])
@pytest.mark.parametrize("variant", ["batchtopk", "jumprelu", "l1", "topk"])
def test_slice_equals_the_readout_of_the_crosscoder(tmp_path: Path, variant: str, readout: str) -> None:
    from sae_lens import SAE

    crosscoder = trained_like(variant)
    raw = 3.0 * torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    inputs = torch.zeros(40, 3, 6)
    inputs[:, 1] = raw
    if readout == "swap":
        inputs[:] = raw[:, None]

    crosscoder.to_sae("b", readout=readout, out=tmp_path / "slice")
    sae = SAE.load_from_disk(tmp_path / "slice")

    with torch.no_grad():
        expected = crosscoder.encode(inputs)
        features = sae.encode(raw)
        in_sae_units = expected * crosscoder.feature_norm() if variant == "topk" else expected
        assert torch.equal(features > 0, expected > 0)
        assert 0 < (expected > 0).sum() < expected.numel()
        torch.testing.assert_close(features, in_sae_units, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae.decode(features), crosscoder.decode_model(expected, "b"), rtol=1e-4, atol=1e-3)


def test_a_dictionary_of_several_sites_is_refused() -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=4, d_sae=8, k=2, sites=("x", "y")))
    with pytest.raises(SaeTrainingError, match="reads 2 sites of each model"):
        crosscoder.to_sae("model_0")


def test_swap_needs_one_width() -> None:
    with pytest.raises(SaeTrainingError, match=r"readout 'swap' is not possible for models of widths \(2, 3, 4\)"):
        trained_like("l1", (2, 3, 4)).to_sae(0, readout="swap")
