"""Crosscoders on disk: ``config.json`` and ``weights.safetensors`` in one folder, written atomically."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sae_training.atomic import write_bytes
from sae_training.config import CrosscoderConfig
from sae_training.errors import SaeTrainingError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT = "sae_training.crosscoder"
FORMAT_VERSION = 1


def json_bytes(value: Any) -> bytes:
    """Indented JSON with a final newline."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def crosscoder_files(config: CrosscoderConfig, tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The contents of both files, by name."""
    value = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": config.model_dump(mode="json")}
    return {WEIGHTS_FILE: save(dict(tensors)), CONFIG_FILE: json_bytes(value)}


def save_crosscoder(config: CrosscoderConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write both files; they replace an older crosscoder in the folder."""
    for name, data in crosscoder_files(config, tensors).items():
        write_bytes(folder / name, data)


def read_config(folder: Path) -> CrosscoderConfig:
    """Read the configuration of a crosscoder.

    Raises:
        SaeTrainingError: The folder does not hold a crosscoder that this release can read.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise SaeTrainingError(
            f"{folder} holds no crosscoder ({CONFIG_FILE} is missing); give a folder written by Crosscoder.save."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SaeTrainingError(
            f"{path} is not valid JSON ({error}); restore it or save the crosscoder again."
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise SaeTrainingError(
            f"{path} does not describe a crosscoder of sae_training; give a folder written by Crosscoder.save."
        )
    if data.get("format_version") != FORMAT_VERSION:
        raise SaeTrainingError(
            f"{path} has format version {data.get('format_version')}, but this release reads version {FORMAT_VERSION}; "
            "use the release that wrote it."
        )
    try:
        return CrosscoderConfig.model_validate(data.get("config"))
    except SaeTrainingError as error:
        raise SaeTrainingError(f"{path}: {error}") from None


def read_weights(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the tensors of a crosscoder.

    Args:
        folder: Folder of the crosscoder.
        expected: Tensors with the names and shapes that the file must have.

    Raises:
        SaeTrainingError: The file cannot be read, or a tensor is missing or has another shape.
    """
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise SaeTrainingError(f"{path} lacks {', '.join(missing)}; this release did not write it.")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise SaeTrainingError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, but {CONFIG_FILE} requires "
                f"{list(tensor.shape)}; the two files do not belong together."
            )
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        SaeTrainingError: The file is missing or damaged.
    """
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise SaeTrainingError(
            f"{path} cannot be read ({error}); it is missing or damaged; train the crosscoder again, or restore a copy."
        ) from None


def fingerprint(config: CrosscoderConfig, tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the configuration and all tensors."""
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
