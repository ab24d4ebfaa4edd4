"""The sums of a finished drift stage as a pandas frame."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy import ndarray

from mechprobe.drift.divergence.columns import BUCKETS, CLASSES, COLUMNS
from mechprobe.environment import require
from mechprobe.files import read_json

if TYPE_CHECKING:
    import pandas as pd

SUMS_FILE, SEQUENCES_FILE = "sums.safetensors", "sequences.json"


def sums_frame(folder: Path) -> "pd.DataFrame":
    """`mechprobe.drift.DivergenceResult.sums`."""
    from safetensors.numpy import load_file

    pandas = require("pandas", "A table of sums")
    described = read_json(folder / SEQUENCES_FILE)
    arrays = load_file(folder / SUMS_FILE)
    frames = []
    for name in described["models"]:
        keys, sums = arrays[f"{name}/keys"], arrays[f"{name}/sums"]
        columns: dict[str, Any] = {"model": name}
        entries = [described["sequences"][str(sequence)] for sequence in keys[:, 0].tolist()]
        columns |= {field: [entry[field] for entry in entries] for field in _fields(entries)}
        columns |= {"token_class": _named(CLASSES, keys[:, 1]), "bucket": _named(BUCKETS, keys[:, 2])}
        columns |= {column: sums[:, index] for index, column in enumerate(COLUMNS)}
        frames.append(pandas.DataFrame(columns))
    return pandas.concat(frames, ignore_index=True)


def _fields(entries: list[dict[str, Any]]) -> list[str]:
    return list(entries[0]) if entries else []


def _named(names: Sequence[str], indices: ndarray) -> list[str]:
    return [str(names[index]) for index in indices.tolist()]
