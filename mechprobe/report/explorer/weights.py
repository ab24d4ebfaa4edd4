"""Decoders of a trained crosscoder, read without torch and only as far as they are needed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.errors import ArtifactError
from mechprobe.files import read_json

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Number types of safetensors as those of NumPy, which has no bfloat16: its bits stand in the upper half of a float32."""
_CHUNK = 4096
"""Rows that are converted at a time."""


class Decoders:
    """The decoders of a trained crosscoder, one model at a time."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "config.json")["config"]
        self.path = folder / "weights.safetensors"
        self.models: Sequence[str] = config["model_names"]
        width = config["d_model"]
        self.widths = [width] * len(self.models) if isinstance(width, int) else list(width)

    def of(self, model: str, features: Int[ndarray, " feature"]) -> Float[ndarray, "feature d_model"]:
        """The decoders that some features have in a model, each at length 1 (0 where the feature has none).

        Raises:
            ArtifactError: The weights cannot be read.
        """
        place = self.models.index(model)
        start = sum(self.widths[:place])
        stored, kind = stored_matrix(self.path, "W_dec")
        rows = np.empty((len(features), self.widths[place]), dtype=np.float32)
        for first in range(0, len(features), _CHUNK):
            part = slice(first, first + _CHUNK)
            found = _float32(stored[features[part], start : start + self.widths[place]], kind)
            length = np.linalg.norm(found, axis=1, keepdims=True)
            rows[part] = found / np.where(length > 0, length, 1)
        return rows


def stored_matrix(path: Path, name: str) -> tuple[ndarray, str]:
    """A matrix of a safetensors file, not read yet, and its number type, such as ``BF16`` (whose bits are then uint16).

    Raises:
        ArtifactError: The file cannot be read, or has no such matrix.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(size))
        entry = header[name]
        rows, columns = entry["shape"]
        begin = 8 + size + entry["data_offsets"][0]
        kind = entry["dtype"]
        return np.memmap(path, dtype=_DTYPES[kind], mode="r", offset=begin, shape=(rows, columns)), kind
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: {name} cannot be read ({error!r}); it must be a matrix of {', '.join(_DTYPES)}. Train the dictionary again."
        ) from None


def _float32(values: ndarray, kind: str) -> Float[ndarray, "row column"]:
    return (values.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else values.astype(np.float32)
