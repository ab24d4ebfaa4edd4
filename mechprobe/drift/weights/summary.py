"""From rows of single weights to groups: by layer, by module type, by both, and over all; and pairs of updates."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mechprobe.drift.weights.naming import sort_key
from mechprobe.drift.weights.result import AgainstNull, Group, ModelUpdate, UpdatePair

SPECTRAL = (
    "spectral_norm", "stable_rank", "effective_rank", "nuclear_norm", "sv_change", "angle_left", "angle_left_max", "angle_right",
    "angle_right_max", "inside", "inside_left", "inside_right",
)  # fmt: skip
"""Spectral numbers of an update, each beside its null."""
Row = dict[str, Any]


def model_update(kind: str, rows: Sequence[Row]) -> ModelUpdate:
    """All groups of one model's rows."""
    return ModelUpdate(
        kind=kind,
        dtypes=tuple(sorted({row["dtype"] for row in rows})),
        total=_group(rows, None, ""),
        types=tuple(_group(part, None, kind) for kind, part in _by(rows, lambda row: row["type"], sort_key)),
        layers=tuple(
            _group(part, layer, "") for layer, part in _by(rows, lambda row: row["layer"], int) if layer is not None
        ),
        cells=tuple(
            _group(part, layer, kind)
            for (layer, kind), part in _by(rows, lambda row: (row["layer"], row["type"]), _cell_key)
        ),
    )


def _cell_key(cell: tuple[int | None, str]) -> tuple[bool, int, tuple[int, str]]:
    return (cell[0] is None, cell[0] or 0, sort_key(cell[1]))


def _by(rows: Iterable[Row], key: Callable[[Row], Any], order: Callable[[Any], Any]) -> list[tuple[Any, list[Row]]]:
    """Rows by a key, in the order of the keys; the key None comes last."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return [(k, found[k]) for k in sorted(found, key=lambda k: (k is None, 0 if k is None else order(k)))]


def _group(rows: Sequence[Row], layer: int | None, kind: str) -> Group:
    n = sum(row["n"] for row in rows)
    norm, base_norm = (math.sqrt(math.fsum(row[name] ** 2 for row in rows)) for name in ("norm", "base_norm"))
    matrices = [row for row in rows if "method" in row]
    shares = {
        name: math.fsum(row[name] * row["n"] for row in rows) / n for name in ("unchanged", "below_bf16", "sign_flips")
    }
    return Group(
        layer=layer, type=kind, n=n, n_weights=len(rows), n_matrices=len(matrices), norm=norm, base_norm=base_norm,
        relative_norm=norm / base_norm if base_norm else math.nan, max_abs=max(row["max_abs"] for row in rows), **shares,
        spectral={name: _against_null(matrices, name) for name in SPECTRAL if any(name in row for row in matrices)},
    )  # fmt: skip


def _against_null(rows: Sequence[Row], name: str) -> AgainstNull:
    columns = {"value": name, "null": f"{name}_null", "low": f"{name}_null_low", "high": f"{name}_null_high"}
    return AgainstNull(
        **{key: _mean([row[column] for row in rows if column in row]) for key, column in columns.items()}
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def update_pairs(rows: Sequence[Row]) -> tuple[UpdatePair, ...]:
    """The totals of every pair of updates; pairs keep the order of the models."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["first"], row["second"]), []).append(row)
    return tuple(_pair(first, second, part) for (first, second), part in found.items())


def _pair(first: str, second: str, rows: Sequence[Row]) -> UpdatePair:
    n, matrices = sum(row["n"] for row in rows), [row for row in rows if "overlap_left" in row]
    sides = {side: _against_null(matrices, f"overlap_{side}") for side in ("left", "right")} if matrices else {}
    return UpdatePair(
        first=first,
        second=second,
        n=n,
        n_matrices=len(matrices),
        cosine=_cosine(rows),
        cosine_null=1 / math.sqrt(n),
        overlap=sides,
        types={kind: _cosine(part) for kind, part in _by(rows, lambda row: row["type"], sort_key)},
    )


def _cosine(rows: Sequence[Row]) -> float:
    product = math.fsum(row["product"] for row in rows)
    norms = (math.sqrt(math.fsum(row[name] ** 2 for row in rows)) for name in ("first_norm", "second_norm"))
    by = math.prod(norms)
    return product / by if by else math.nan
