"""Crosscoders on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sae_training import Crosscoder, CrosscoderConfig, SaeTrainingError


def make(widths: int | tuple[int, ...] = 4) -> Crosscoder:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=widths, d_sae=6, k=2, model_names=("base", "rl")))
    crosscoder.set_scale([0.7, 1.9])
    crosscoder.threshold.fill_(0.1234567890123)
    return crosscoder


@pytest.mark.parametrize("widths", [4, (3, 5)])
def test_round_trip_to_the_bit(tmp_path: Path, widths: int | tuple[int, ...]) -> None:
    crosscoder = make(widths)
    crosscoder.save(tmp_path / "c")
    loaded = Crosscoder.load(tmp_path / "c")
    assert loaded.config == crosscoder.config
    assert loaded.fingerprint == crosscoder.fingerprint
    for name, tensor in crosscoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert loaded.state_dict()[name].dtype == tensor.dtype
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["config.json", "weights.safetensors"]


def test_thresholds_of_every_latent_are_kept(tmp_path: Path) -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=4, d_sae=6, variant="jumprelu"))
    crosscoder.threshold.copy_(torch.linspace(0.1, 3.0, 6))
    crosscoder.save(tmp_path)
    loaded = Crosscoder.load(tmp_path)
    assert torch.equal(loaded.threshold, crosscoder.threshold)
    assert loaded.fingerprint == crosscoder.fingerprint


def test_fingerprint_sees_the_configuration() -> None:
    config = CrosscoderConfig(n_models=2, d_model=2, d_sae=3, k=1, model_names=("base", "rl"))
    assert Crosscoder(config.replace(sites=("x", "y"))).fingerprint != Crosscoder(config).fingerprint
    assert Crosscoder(config.replace(initial_threshold=0.2)).fingerprint != Crosscoder(config).fingerprint


def test_unset_scale_stays_unset(tmp_path: Path) -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=4, d_sae=6, k=2))
    crosscoder.save(tmp_path)
    assert not Crosscoder.load(tmp_path).has_scale


@pytest.mark.parametrize("field", ["encoder", "decoder", "b_enc", "b_dec_flat", "scale", "threshold"])
def test_fingerprint_sees_every_tensor(field: str) -> None:
    one, other = make(), make()
    assert one.fingerprint == other.fingerprint
    with torch.no_grad():
        getattr(other, field).mul_(1.5).add_(0.01)
    assert one.fingerprint != other.fingerprint


def test_folders_without_a_crosscoder(tmp_path: Path) -> None:
    with pytest.raises(SaeTrainingError, match=r"nowhere.*config\.json"):
        Crosscoder.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(SaeTrainingError, match=r"config\.json.*JSON"):
        Crosscoder.load(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    with pytest.raises(SaeTrainingError, match=r"config\.json.*sae_training"):
        Crosscoder.load(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    make().save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(SaeTrainingError, match=r"weights\.safetensors"):
        Crosscoder.load(tmp_path)
    weights.unlink()
    with pytest.raises(SaeTrainingError, match=r"weights\.safetensors"):
        Crosscoder.load(tmp_path)
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["d_sae"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SaeTrainingError, match=r"W_enc.*\[8, 6\].*\[8, 7\]"):
        Crosscoder.load(tmp_path)
    config["config"]["d_sea"] = 6
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SaeTrainingError, match=r"config\.json.*'d_sae'"):
        Crosscoder.load(tmp_path)
    config["format_version"] = 9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SaeTrainingError, match="version 9"):
        Crosscoder.load(tmp_path)
