"""The flat tables of a drift stage: sums of cells become numbers with intervals by bootstrap over sequences."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.drift.divergence.columns import BUCKETS, CLASSES, COLUMNS, cell_source
from mechprobe.drift.divergence.metrics import metrics_in, metrics_of
from mechprobe.drift.divergence.result import DivergenceRow
from mechprobe.statistics import cluster_draws

_DRAWS = 100
"""Bootstrap draws that are in memory at a time."""

Sequences = Mapping[int, Mapping[str, Any]]
"""Index in the stream → id, prompt, task, skill, domain, writer, temperature of a sequence."""
_BY = ("task", "skill", "domain")


def divergence_rows(
    model: str,
    base: str,
    keys: Int[ndarray, "cell 3"],
    sums: Float[ndarray, "cell column"],
    sequences: Sequences,
    *,
    draws: int,
    seed: int,
) -> list[DivergenceRow]:
    """All rows of one model."""
    source = _sources(base, keys, sequences)
    rows = []
    for name, temperature in sorted(set(source), key=lambda item: (item[0], item[1] or 0.0)):
        mine = np.array([each == (name, temperature) for each in source])
        rows += _rows_of_source(model, name, temperature, (keys[mine], sums[mine]), sequences, draws=draws, seed=seed)
    return rows


def _sources(base: str, keys: ndarray, sequences: Sequences) -> list[tuple[str, float | None]]:
    """Source and temperature of every cell."""
    found: list[tuple[str, float | None]] = []
    for sequence, _, bucket in keys.tolist():
        entry = sequences[sequence]
        name = cell_source(entry["writer"], base, bucket)
        found.append((name, None if name == "prompt" else entry["temperature"]))
    return found


def _rows_of_source(
    model: str,
    source: str,
    temperature: float | None,
    cells: tuple[ndarray, ndarray],
    sequences: Sequences,
    *,
    draws: int,
    seed: int,
) -> list[DivergenceRow]:
    keys, sums = cells
    known, place = np.unique(keys[:, 0], return_inverse=True)
    groups = _groups(source, keys, sequences)
    totals = np.zeros((len(known), len(groups), len(COLUMNS)))
    for index, mask in enumerate(groups.values()):
        np.add.at(totals[:, index], place[mask], sums[mask])
    values = metrics_of(totals.sum(axis=0))
    low, high = _ends(totals, draws=draws, seed=seed)
    n, n_sequences = totals[..., 0].sum(axis=0), (totals[..., 0] > 0).sum(axis=0)
    return [
        DivergenceRow(
            model=model,
            source=source,
            temperature=temperature,
            by=by,
            group=group,
            metric=metric,
            value=float(values[metric][index]),
            low=float(low[metric][index]) if n_sequences[index] > 1 else float("nan"),
            high=float(high[metric][index]) if n_sequences[index] > 1 else float("nan"),
            n=int(n[index]),
            n_sequences=int(n_sequences[index]),
        )
        for index, (by, group) in enumerate(groups)
        for metric in metrics_in(source)
    ]


def _groups(source: str, keys: ndarray, sequences: Sequences) -> dict[tuple[str, str], ndarray]:
    """(by, group) → cells of the group; the whole first."""
    found: dict[tuple[str, str], ndarray] = {("all", "all"): np.ones(len(keys), dtype=bool)}
    for by in _BY:
        names = [sequences[sequence][by] for sequence in keys[:, 0].tolist()]
        for group in sorted({name for name in names if name}):
            found[by, group] = np.array([name == group for name in names])
    for by, column, labels in (("token_class", 1, CLASSES), ("bucket", 2, BUCKETS)):
        if by == "bucket" and source == "prompt":
            continue
        for index, label in enumerate(labels):
            if (keys[:, column] == index).any():
                found[by, label] = keys[:, column] == index
    return found


def _ends(
    totals: Float[ndarray, "sequence group column"], *, draws: int, seed: int
) -> tuple[dict[str, ndarray], dict[str, ndarray]]:
    """Percentile bootstrap over sequences: 2.5 % and 97.5 % quantiles of every metric, by group."""
    n, n_groups, _ = totals.shape
    flat, drawn = totals.reshape(n, -1), []
    for number, start in enumerate(range(0, draws, _DRAWS)):
        weights = cluster_draws(np.arange(n), draws=min(_DRAWS, draws - start), seed=(seed, number))
        drawn.append(metrics_of((weights @ flat).reshape(len(weights), n_groups, len(COLUMNS))))
    low, high = {}, {}
    for metric in drawn[0]:
        low[metric], high[metric] = _quantiles(np.concatenate([part[metric] for part in drawn]))
    return low, high


def _quantiles(values: Float[ndarray, "draw group"]) -> tuple[ndarray, ndarray]:
    """Quantiles of the draws that hold a position of the group; NaN where none does."""
    ends = np.full((2, values.shape[1]), np.nan)
    for group in np.flatnonzero(np.isfinite(values).any(axis=0)):
        finite = values[np.isfinite(values[:, group]), group]
        ends[:, group] = np.quantile(finite, [0.025, 0.975])
    return ends[0], ends[1]
