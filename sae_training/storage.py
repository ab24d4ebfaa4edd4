"""Crosscoders on disk: ``config.json`` and ``weights.safetensors`` in one folder, written atomically."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sae_training.atomic import write_bytes
from sae_training.config import CrosscoderConfig
from sae_training.errors import SaeTrainingError

if TYPE_CHECKING:
    from sae_training.crosscoder import Crosscoder

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT = "sae_training.crosscoder"
FORMAT_VERSION = 1
_LATER = {"sites", "n_shared", "initial_threshold"}


def json_bytes(value: Any) -> bytes:
    """Indented JSON with a final newline."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def weight_tensors(crosscoder: Crosscoder) -> dict[str, Tensor]:
    """The tensors of the file: W_enc [d_all, d_sae], W_dec [d_sae, d_all], b_enc, b_dec, scale, threshold.

    The threshold is one number, or one per feature (jumprelu).
    """
    tensors = {
        "W_enc": crosscoder.encoder.T,
        "W_dec": crosscoder.decoder,
        "b_enc": crosscoder.b_enc,
        "b_dec": crosscoder.b_dec_flat,
        "scale": crosscoder.scale,
        "threshold": crosscoder.threshold,
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def assign_weights(crosscoder: Crosscoder, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy the tensors of a weights file into a crosscoder; shapes are checked."""
    expected = weight_tensors(crosscoder)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise SaeTrainingError(
            f"{source / WEIGHTS_FILE} lacks {', '.join(missing)}; it is no crosscoder of this version."
        )
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise SaeTrainingError(
                f"{source / WEIGHTS_FILE}: {name} has shape {list(tensors[name].shape)} where {CONFIG_FILE} "
                f"makes it {list(tensor.shape)}; the two files do not belong together."
            )
    crosscoder.to(tensors["W_dec"].dtype)
    crosscoder.threshold.data = crosscoder.threshold.data.double()
    with torch.no_grad():
        crosscoder.encoder.copy_(tensors["W_enc"].T)
        crosscoder.decoder.copy_(tensors["W_dec"])
        crosscoder.b_enc.copy_(tensors["b_enc"])
        crosscoder.b_dec_flat.copy_(tensors["b_dec"])
        crosscoder.scale.copy_(tensors["scale"])
        crosscoder.threshold.copy_(tensors["threshold"])


def crosscoder_files(crosscoder: Crosscoder) -> dict[str, bytes]:
    """The contents of both files, by name."""
    config = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": crosscoder.config.model_dump(mode="json")}
    return {WEIGHTS_FILE: save(weight_tensors(crosscoder)), CONFIG_FILE: json_bytes(config)}


def save_crosscoder(crosscoder: Crosscoder, folder: Path) -> None:
    """Write both files; an older crosscoder in the folder is replaced."""
    for name, data in crosscoder_files(crosscoder).items():
        write_bytes(folder / name, data)


def read_crosscoder(folder: Path) -> tuple[CrosscoderConfig, dict[str, Tensor]]:
    """Read both files of a folder; every way to be no crosscoder is one sentence."""
    config_path = folder / CONFIG_FILE
    if not folder.is_dir() or not config_path.is_file():
        raise SaeTrainingError(
            f"{folder} holds no crosscoder (no {CONFIG_FILE}); give a folder written by Crosscoder.save."
        )
    try:
        data = json.loads(config_path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SaeTrainingError(
            f"{config_path} is no JSON ({error}); restore it or save the crosscoder again."
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise SaeTrainingError(
            f"{config_path} describes no crosscoder of sae_training; give a folder written by Crosscoder.save."
        )
    if data.get("format_version") != FORMAT_VERSION:
        raise SaeTrainingError(
            f"{config_path} has format version {data.get('format_version')}, this release reads {FORMAT_VERSION}; "
            "use the release that wrote it."
        )
    try:
        config = CrosscoderConfig.model_validate(data.get("config"))
    except SaeTrainingError as error:
        raise SaeTrainingError(f"{config_path}: {error}") from None
    return config, read_tensors(folder / WEIGHTS_FILE)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a missing or truncated one is one sentence."""
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise SaeTrainingError(f"{path} cannot be read ({error}); it is missing or damaged: save it again.") from None


def fingerprint(crosscoder: Crosscoder) -> str:
    """sha256 over the configuration, the scale, the threshold and the weights.

    Settings that came later count only where they are used, so that an older dictionary keeps its fingerprint.
    """
    settings = crosscoder.config.model_dump(mode="json")
    plain = type(crosscoder.config)(n_models=2, d_model=1, d_sae=1, k=1).model_dump(mode="json")
    kept = {name: value for name, value in settings.items() if name not in _LATER or value != plain[name]}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name, tensor in sorted(weight_tensors(crosscoder).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
