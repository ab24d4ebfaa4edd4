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


def test_thresholds_of_every_feature_are_kept(tmp_path: Path) -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=4, d_sae=6, variant="jumprelu"))
    crosscoder.threshold.copy_(torch.linspace(0.1, 3.0, 6))
    crosscoder.save(tmp_path)
    loaded = Crosscoder.load(tmp_path)
    assert torch.equal(loaded.threshold, crosscoder.threshold)
    assert loaded.fingerprint == crosscoder.fingerprint


def test_files_from_before_a_setting_existed_still_load(tmp_path: Path) -> None:
    crosscoder = make()
    crosscoder.save(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    for later in ("sites", "n_shared", "initial_threshold"):
        del data["config"][later]
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert Crosscoder.load(tmp_path).fingerprint == crosscoder.fingerprint


def test_the_fingerprint_is_that_of_the_first_release() -> None:
    # Written down from the release without sites, shared latents and jumprelu; only the settings in use count.
    config = CrosscoderConfig(n_models=2, d_model=2, d_sae=3, k=1, model_names=("base", "rl"))
    crosscoder = Crosscoder(config)
    with torch.no_grad():
        for number, parameter in enumerate(crosscoder.parameters()):
            parameter.fill_(number + 0.5)
    crosscoder.set_scale([0.5, 2.0])
    assert crosscoder.fingerprint == "eacba24497dedf2dc1cee54fe7eae3c8d6b049b47911c74d5b2e9250d1cd984d"
    assert Crosscoder(config.replace(sites=("x", "y"))).fingerprint != Crosscoder(config).fingerprint


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


def test_what_is_no_crosscoder(tmp_path: Path) -> None:
    with pytest.raises(SaeTrainingError, match=r"nowhere holds no crosscoder \(no config.json\)"):
        Crosscoder.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(SaeTrainingError, match=r"config.json is no JSON"):
        Crosscoder.load(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    with pytest.raises(SaeTrainingError, match="describes no crosscoder"):
        Crosscoder.load(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    make().save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(SaeTrainingError, match=r"weights.safetensors cannot be read .*damaged"):
        Crosscoder.load(tmp_path)
    weights.unlink()
    with pytest.raises(SaeTrainingError, match=r"weights.safetensors cannot be read .*missing"):
        Crosscoder.load(tmp_path)
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["d_sae"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SaeTrainingError, match=r"W_enc has shape \[8, 6\] where config.json makes it \[8, 7\]"):
        Crosscoder.load(tmp_path)
    config["config"]["d_sea"] = 6
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SaeTrainingError, match=r"config.json: .*did you mean 'd_sae'"):
        Crosscoder.load(tmp_path)
    config["format_version"] = 9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SaeTrainingError, match="format version 9"):
        Crosscoder.load(tmp_path)
