"""How well random sets match the selection they control for."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.results import Number, Result
from mechprobe.selection.covariates import Covariates

CALIPER = 0.25
"""Largest difference of means, in standard deviations over the live features, that counts as a match (Stuart 2010)."""


class CovariateMatch(Result):
    """The match in one covariate. Differences are of mean logarithms, random minus selected, in standard deviations."""

    selected: float
    """Mean over the selected features, in the covariate's own units."""
    random: float
    """Mean over the features of all random sets, in the covariate's own units."""
    difference: float
    """Mean over the random sets of their differences."""
    worst_set: float
    """The largest difference of a single random set."""
    at_best: float
    """The difference nearest 0 that any set of this size could have in this covariate alone."""


class PairDistance(Result):
    """A selected feature, its match in a random set, and their distance in standard deviations."""

    feature: int
    random: int
    distance: float


class ControlMatch(Result):
    """How near random sets come to the selection, and how different they are from each other."""

    n_sets: int
    n_features: int
    """Features of the selection and of every random set."""
    n_pool: int
    """Live features outside the selection."""
    covariates: dict[str, CovariateMatch]
    mean_pair_distance: float
    """Mean distance of a feature and its match, in standard deviations."""
    worst_pair: PairDistance
    n_distinct: int
    """Distinct features over all random sets."""
    most_used: int
    """Random sets that contain the feature drawn most often."""
    mean_overlap: Number
    """Mean share of features that two random sets have in common; NaN for a single set."""
    caliper: float
    beyond_caliper: tuple[str, ...]
    """Covariates whose difference exceeds the caliper."""


def match_quality(
    ids: Sequence[int], sets: Sequence[Sequence[int]], covariates: Covariates, *, caliper: float = CALIPER
) -> ControlMatch | None:
    """The match of random sets with a selection; None without sets or for an empty selection.

    Args:
        ids: The selection.
        sets: Its random sets; the i-th feature of each matches the i-th of ``ids``.
        covariates: What was matched.
        caliper: Bound in standard deviations, see `CALIPER`.
    """
    if not sets or not ids:
        return None
    chosen, drawn = np.asarray(ids), np.asarray(sets)
    place = covariates.standardized
    pairs = place[drawn] - place[chosen]  # [set feature covariate]
    distance = np.sqrt((pairs**2).sum(axis=2))
    worst = np.unravel_index(int(distance.argmax()), distance.shape)
    others = np.flatnonzero(covariates.live & ~np.isin(np.arange(len(place)), chosen))
    rows = _covariate_rows(chosen, drawn, pairs.mean(axis=1), others, covariates)
    counts = np.unique(drawn, return_counts=True)[1]
    shared = [len(set(a) & set(b)) / len(ids) for a, b in combinations(sets, 2)]
    return ControlMatch(
        n_sets=len(sets),
        n_features=len(ids),
        n_pool=len(others),
        covariates=rows,
        mean_pair_distance=float(distance.mean()),
        worst_pair=PairDistance(
            feature=int(chosen[worst[1]]), random=int(drawn[worst]), distance=float(distance[worst])
        ),
        n_distinct=len(counts),
        most_used=int(counts.max()),
        mean_overlap=float(np.mean(shared)) if shared else float("nan"),
        caliper=caliper,
        beyond_caliper=tuple(name for name, row in rows.items() if abs(row.difference) > caliper),
    )


def _covariate_rows(
    chosen: ndarray, drawn: ndarray, means: Float[ndarray, "set covariate"], others: ndarray, covariates: Covariates
) -> dict[str, CovariateMatch]:
    place = covariates.standardized
    return {
        name: CovariateMatch(
            selected=float(raw[chosen].mean()),
            random=float(raw[drawn].mean()),
            difference=float(means[:, column].mean()),
            worst_set=float(means[np.abs(means[:, column]).argmax(), column]),
            at_best=_at_best(place[others, column], float(place[chosen, column].mean()), len(chosen)),
        )
        for column, (name, raw) in enumerate(covariates.columns.items())
    }


def _at_best(others: Float[ndarray, " pool"], wanted: float, n: int) -> float:
    """The difference nearest 0 between ``wanted`` and the mean of any ``n`` of the others."""
    ranked = np.sort(others)
    lowest, highest = float(ranked[:n].mean()) - wanted, float(ranked[-n:].mean()) - wanted
    return float(np.clip(0.0, lowest, highest))
