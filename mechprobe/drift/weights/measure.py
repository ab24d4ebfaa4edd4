"""Every number of one weight: of the updates of all models, of random updates beside them, and of pairs of updates."""

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.drift.weights.compared import Comparison, Update
from mechprobe.drift.weights.config import WeightsConfig
from mechprobe.drift.weights.decompositions import Estimated, Exact
from mechprobe.drift.weights.entries import EntryTotals
from mechprobe.drift.weights.naming import place_of
from mechprobe.drift.weights.nulls import RandomUpdate, n_draws, random_frame, with_null
from mechprobe.drift.weights.spectra import Singular, subspace_overlap
from mechprobe.drift.weights.stored import View

Row = dict[str, Any]


@dataclass(frozen=True)
class TopUpdate:
    """The top subspaces of an update: right vectors, and left vectors with the longer side first."""

    right: Float[Tensor, "short k"]
    left: Float[Tensor, "long k"]


@dataclass
class Measured:
    """What is known of one weight: a row per model, and a row per pair of models."""

    rows: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)


def measure(name: str, compared: Comparison, config: WeightsConfig) -> Measured:
    """Measure one weight in every model."""
    view, updates = compared.view(name), compared.updates(name)
    entries = {model: _entries(update) for model, update in updates.items()}
    about = _about(name, view)
    found, tops = Measured(), dict[str, TopUpdate]()
    changed = [update for model, update in updates.items() if entries[model].powers[1]]
    matrix = _Matrix(view, config, changed[0]) if len(view.shape) == 2 and changed else None
    for model, update in updates.items():
        row = {"model": model, **about, "dtype": _name_of(update.tuned.stored.dtype)} | entries[model].numbers()
        if matrix is not None and row["norm"] > 0:
            spectral, top = matrix.of(update, row["norm"], pairs=len(updates) > 1)
            row |= spectral
            tops |= {model: top} if top else {}
        found.rows.append(row)
    norms = {row["model"]: row["norm"] for row in found.rows}
    for first, second in combinations(updates, 2):
        pair = {"first": first, "second": second, **about, "product": _product(updates[first], updates[second])}
        pair |= {"first_norm": norms[first], "second_norm": norms[second]}
        pair["cosine"] = _ratio(pair["product"], norms[first] * norms[second])
        if first in tops and second in tops:
            pair |= _overlaps(tops[first], tops[second], config)
        found.pairs.append(pair)
    return found


def _about(name: str, view: View) -> Row:
    place = place_of(name)
    rows, columns = view.shape if len(view.shape) == 2 else (view.shape[0], None)
    return {
        "tensor": name, "layer": place.layer, "type": place.kind, "rows": rows, "columns": columns, "n": view.n,
        "base_dtype": _name_of(view.dtype),
    }  # fmt: skip


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _entries(update: Update) -> EntryTotals:
    rounded = update.low_rank and not update.untouched
    totals = EntryTotals(update.base.stored.dtype if rounded else None)
    for weight, change in update.blocks():
        totals.add(weight, change)
    return totals


def _product(first: Update, second: Update) -> float:
    """Sum of the products of the entries of two updates of one weight."""
    if first.untouched or second.untouched:
        return 0.0
    return math.fsum((a * b).sum().item() for (_, a), (_, b) in zip(first.blocks(), second.blocks(), strict=True))


def _ratio(value: float, by: float) -> float:
    return value / by if by else math.nan


def _overlaps(first: TopUpdate, second: TopUpdate, config: WeightsConfig) -> Row:
    """Overlap of the top subspaces of two updates, and of the first one's with random subspaces of the second one's size."""
    row: Row = {"pair_k": min(first.right.shape[1], second.right.shape[1])}
    for side in ("left", "right"):
        own, other = getattr(first, side), getattr(second, side)
        drawn = [
            random_frame(len(own), other.shape[1], "frame", config.seed, draw) for draw in range(config.null_draws)
        ]
        value = {f"overlap_{side}": subspace_overlap(own.T @ other)}
        row |= with_null(value, [{f"overlap_{side}": subspace_overlap(own.T @ frame)} for frame in drawn])
    return row


class _Matrix:
    """One matrix: base's decomposition, which all models share, and the spectral numbers of each update."""

    def __init__(self, view: View, config: WeightsConfig, first: Update) -> None:
        self.k = min(config.top_k, view.short)
        self.exact = view.short <= config.exact_up_to
        self.decomposed = (Exact if self.exact else Estimated)(view, first.base, self.k, config.seed)
        shape, draws = (view.long, view.short), n_draws(view.short, config.null_draws)
        self.randoms = [RandomUpdate(shape, config.seed, draw) for draw in range(draws)]

    def of(self, update: Update, norm: float, *, pairs: bool) -> tuple[Row, TopUpdate | None]:
        """The spectral numbers of an update with their null, and its top subspaces if there are pairs of updates."""
        numbers, top = self.decomposed.spectrum(update)
        geometry, k = self.decomposed.geometry(update, self.k)
        nulls = []
        for random in self.randoms:
            drawn = dict(self.decomposed.random_spectrum(random))
            drawn |= {name: norm * drawn[name] for name in ("spectral_norm", "nuclear_norm")}
            nulls.append(drawn | self.decomposed.random_geometry(random, norm, k))
        method = "exact" if self.exact else "estimated"
        row: Row = {"method": method, "k": k, "null_draws": len(nulls), **self.decomposed.errors}
        return row | with_null(numbers | geometry, nulls), _top(update, top, self.k) if pairs else None


def _top(update: Update, top: Singular, k: int) -> TopUpdate:
    """The top subspaces of an update; the left vectors follow from the right ones."""
    k = min(k, top.rank)
    right, values = top.right[:, :k], top.values[:k]
    return TopUpdate(right, torch.cat([change @ right / values for _, change in update.blocks()]))
