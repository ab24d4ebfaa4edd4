"""The sums of a finished drift stage as a pandas frame, and the difference of two models from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from mechprobe.drift.divergence.columns import BUCKETS, CLASSES, COLUMNS, cell_source
from mechprobe.drift.divergence.metrics import metrics_of
from mechprobe.environment import require
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json
from mechprobe.statistics import Interval, cluster_draws

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
        columns["source"] = [
            cell_source(entry["writer"], described["base"], bucket)
            for entry, bucket in zip(entries, keys[:, 2].tolist(), strict=True)
        ]
        columns |= {"token_class": _named(CLASSES, keys[:, 1]), "bucket": _named(BUCKETS, keys[:, 2])}
        columns |= {column: sums[:, index] for index, column in enumerate(COLUMNS)}
        frames.append(pandas.DataFrame(columns))
    return pandas.concat(frames, ignore_index=True)


def _fields(entries: list[dict[str, Any]]) -> list[str]:
    return list(entries[0]) if entries else []


def _named(names: Sequence[str], indices: ndarray) -> list[str]:
    return [str(names[index]) for index in indices.tolist()]


def paired_difference(
    frame: "pd.DataFrame", models: tuple[str, str], metric: str, cells: dict[str, str], *, draws: int, seed: int
) -> Interval:
    """A metric of the first model minus that of the second on the prompts that both have; `mechprobe.drift.DivergenceResult.difference`.

    Raises:
        ArtifactError: The models have no such prompt in common.
    """
    given: Any = frame
    for column, value in cells.items():
        given = given[given[column] == value]
    parts: list[Any] = [given[given["model"] == model].groupby("prompt_id")[list(COLUMNS)].sum() for model in models]
    shared = parts[0].index.intersection(parts[1].index)
    if not len(shared):
        raise ArtifactError(
            f"{models[0]} and {models[1]} have no prompt in common where {cells}; give another source or group."
        )
    totals = np.stack([part.loc[shared].to_numpy() for part in parts], axis=1)
    weights = cluster_draws(np.arange(len(shared)), draws=draws, seed=seed)
    drawn = metrics_of((weights @ totals.reshape(len(shared), -1)).reshape(len(weights), 2, len(COLUMNS)))[metric]
    first, second = metrics_of(totals.sum(axis=0))[metric]
    low, high = np.quantile(drawn[:, 0] - drawn[:, 1], [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return Interval(float(first - second), float(low), float(high), len(shared))
