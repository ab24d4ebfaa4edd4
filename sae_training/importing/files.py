"""Tensors and settings from published files, read without running code in a file."""

import json
import pickle  # noqa: TID251 only for the name of the exception that torch.load raises with weights_only=True
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_training.errors import SaeTrainingError

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_USUAL_NAMES = ("model.safetensors", "sae_weights.safetensors", "model_final.pt", "cc_weights.pt", "ae.pt")
_WRAPPERS = ("model_state_dict", "state_dict", "sae")
_COMPILED = "_orig_mod."


@dataclass(frozen=True)
class PublishedFile:
    """Contents of a published file whose format is not yet known.

    Attributes:
        path: The weights file.
        tensors: Tensors by name, without the wrapper of a training checkpoint and the prefix of a compiled module.
        settings: Contents of the JSON file beside it; empty if there is none.
        settings_path: Path of the JSON file, or None.
    """

    path: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    settings_path: Path | None

    def has(self, *names: str) -> bool:
        """Whether the file has all these tensors."""
        return all(name in self.tensors for name in names)

    def tensor(self, name: str, shape: Sequence[int | None]) -> Tensor:
        """One tensor in float64; None in ``shape`` allows any size.

        Raises:
            SaeTrainingError: The tensor is missing, has another shape or layout, or has values that are not finite.
        """
        if name not in self.tensors:
            raise SaeTrainingError(
                f"{self.path}: tensor {name!r} is missing among {_listed(sorted(self.tensors))}; give the right format."
            )
        found = self.tensors[name]
        fits = found.ndim == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
        if not fits:
            wanted = ["any" if size is None else size for size in shape]
            raise SaeTrainingError(
                f"{self.path}: {name} has shape {list(found.shape)}, but the other tensors require {wanted}; "
                "the file is damaged or has another format."
            )
        plain = found.layout == torch.strided and not (found.is_meta or found.is_quantized or found.is_complex())
        if not plain:
            raise SaeTrainingError(
                f"{self.path}: {name} is not a dense tensor of real numbers ({found.dtype}, {found.layout}, "
                f"{found.device}); save it as a dense float tensor."
            )
        found = found.double()
        if not bool(torch.isfinite(found).all()):
            raise SaeTrainingError(f"{self.path}: {name} has values that are not finite; its training diverged.")
        return found

    def number(self, name: str) -> float | None:
        """The value of a tensor with one number, or None if it is missing."""
        return float(self.tensor(name, ())) if name in self.tensors else None

    @property
    def dtype(self) -> torch.dtype:
        """float64 if the file has such a tensor, else float32, which represents half precision exactly."""
        return torch.float64 if any(t.dtype == torch.float64 for t in self.tensors.values()) else torch.float32


def read_published_file(path: Path | str) -> PublishedFile:
    """Read a weights file, or the only one in a folder, and the JSON settings beside it.

    Raises:
        SaeTrainingError: There is not exactly one weights file, or it cannot be read, or it holds more than tensors.
    """
    weights = _weights_file(Path(path))
    loaded = _read_safetensors(weights) if weights.suffix == ".safetensors" else _read_torch(weights)
    settings_path = _settings_file(weights)
    settings = read_json(settings_path) if settings_path else {}
    return PublishedFile(weights, _unwrapped(weights, loaded), settings, settings_path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SaeTrainingError: The file cannot be read, or does not hold a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SaeTrainingError(f"{path} is not readable JSON ({error}); download the file again.") from None
    if not isinstance(data, dict):
        raise SaeTrainingError(f"{path} does not hold a JSON object; download the file again.")
    return data


def _weights_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise SaeTrainingError(f"{path} is not a weights file; give a file that ends in {', '.join(_SUFFIXES)}.")
        return path
    if not path.is_dir():
        raise SaeTrainingError(f"{path} does not exist; give a weights file or a folder with one.")
    for name in _USUAL_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(item for item in path.iterdir() if item.suffix in _SUFFIXES and item.is_file())
    if len(found) == 1:
        return found[0]
    state = f"holds {_listed([item.name for item in found])}" if found else "does not hold a weights file"
    raise SaeTrainingError(f"{path} {state}; give the path of one weights file.")


def _settings_file(weights: Path) -> Path | None:
    stem = weights.name.removesuffix(weights.suffix)
    for name in (f"{stem}_cfg.json", "config.json", "cfg.json"):
        if (weights.parent / name).is_file():
            return weights.parent / name
    return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SaeTrainingError(f"{path} cannot be read ({error}); it is damaged: download the file again.") from None


def _read_torch(path: Path) -> Any:
    """Read a torch.save file of tensors and plain containers; ``weights_only`` never runs code from the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        if "nsupported" in reason or "not allowed" in reason:
            raise SaeTrainingError(
                f"{path} would run code when opened, so it was not opened; ask its author for safetensors or for a state "
                "dict of tensors."
            ) from None
        raise _damaged(path) from None
    except OSError as error:
        raise SaeTrainingError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (
        ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, RuntimeError,
        TypeError, ValueError, struct.error,
    ):  # fmt: skip
        # The reader can fail in any of these ways on bytes that torch.save did not write.
        raise _damaged(path) from None


def _damaged(path: Path) -> SaeTrainingError:
    return SaeTrainingError(f"{path} was not written by torch.save, or is damaged; download the file again.")


def _unwrapped(path: Path, loaded: Any) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise SaeTrainingError(f"{path} holds a {type(loaded).__name__}, not named tensors; give a state dict.")
    tensors = {str(name).removeprefix(_COMPILED): t for name, t in loaded.items() if isinstance(t, Tensor)}
    if not tensors:
        raise SaeTrainingError(f"{path} does not hold tensors; give a state dict.")
    return tensors


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
