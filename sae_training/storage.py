"""Crosscoders on disk: ``config.json`` and ``weights.safetensors`` in one folder, written atomically."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from sae_training.atomic import write_bytes
from sae_training.config import CrosscoderConfig
from sae_training.errors import SaeTrainingError
from sae_training.parallel import ALONE, Division
from sae_training.tensor_files import read_part, write_tensors, written_together

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT = "sae_training.crosscoder"
FORMAT_VERSION = 1


def json_bytes(value: Any) -> bytes:
    """Indented JSON with a final newline."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def config_bytes(config: CrosscoderConfig) -> bytes:
    """The contents of ``config.json``."""
    return json_bytes({"format": FORMAT, "format_version": FORMAT_VERSION, "config": config.model_dump(mode="json")})


def save_crosscoder(
    config: CrosscoderConfig, tensors: Mapping[str, Tensor], folder: Path, division: Division = ALONE
) -> None:
    """Write both files; they replace an older crosscoder in the folder. Each process writes its latents."""
    with written_together(folder / WEIGHTS_FILE, division) as path:
        write_tensors(path, tensors, config.d_sae, division)
    if division.is_first:
        write_bytes(folder / CONFIG_FILE, config_bytes(config))


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


def read_weights(
    folder: Path, expected: Mapping[str, Tensor], rows: slice | None = None, d_sae: int = 0
) -> dict[str, Tensor]:
    """Read the tensors of a crosscoder.

    Args:
        folder: Folder of the crosscoder.
        expected: Tensors with the names and shapes that the file, or its part, must have.
        rows: The latents to read; None for all.
        d_sae: Number of latents in the file, where a part is read.

    Raises:
        SaeTrainingError: The file cannot be read, or a tensor is missing or has another shape.
    """
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path) if rows is None else read_part(path, rows, d_sae)
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
