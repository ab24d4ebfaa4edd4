"""How the set of task-agnostic features depends on the threshold."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.results import Number, Result
from mechprobe.selection.agnostic import relative_values


class AgnosticCounts(Result):
    """Live features above a threshold."""

    per_task: dict[str, int]
    all_tasks: int
    """Features above the threshold on every task: the task-agnostic ones."""


class ThresholdCounts(AgnosticCounts):
    """Live features above one threshold."""

    threshold: float
    """Share of each task's maximum."""
    n_selected: int
    """Task-agnostic features that are in the selection."""


class ThresholdPair(Result):
    """The task-agnostic sets at two thresholds."""

    thresholds: tuple[float, float]
    jaccard: Number
    """Jaccard index of the two sets; NaN if both are empty."""


class ThresholdStability(Result):
    """The task-agnostic set at several thresholds."""

    sizes: tuple[ThresholdCounts, ...]
    jaccard: tuple[ThresholdPair, ...]


def above_threshold(
    values: Float[ndarray, "task d_sae"], threshold: float, live: Bool[ndarray, " d_sae"]
) -> Bool[ndarray, "task d_sae"]:
    """Live features above ``threshold`` times the maximum of each task."""
    return (relative_values(values) > threshold) & live


def agnostic_counts(above: Bool[ndarray, "task d_sae"], tasks: Sequence[str]) -> AgnosticCounts:
    """Count the features above a threshold on every task, and on all of them."""
    per_task = dict(zip(tasks, above.sum(axis=1).tolist(), strict=True))
    return AgnosticCounts(per_task=per_task, all_tasks=int(above.all(axis=0).sum()))


def threshold_stability(
    values: Float[ndarray, "task d_sae"],
    tasks: Sequence[str],
    features: Sequence[int],
    *,
    live: Bool[ndarray, " d_sae"],
    thresholds: Sequence[float],
) -> ThresholdStability:
    """Sizes of the task-agnostic set at several thresholds, and the Jaccard index of every two.

    The sets are nested, so the Jaccard index of two sets is the ratio of their sizes.

    Args:
        values: Values of the ranking.
        tasks: Names of the first axis.
        features: The selection.
        live: Features that count.
        thresholds: Shares of each task's maximum.
    """
    above = {threshold: above_threshold(values, threshold, live) for threshold in thresholds}
    agnostic = {threshold: set(np.flatnonzero(rows.all(axis=0)).tolist()) for threshold, rows in above.items()}
    sizes = tuple(
        ThresholdCounts(
            threshold=threshold,
            n_selected=len(agnostic[threshold] & set(features)),
            **agnostic_counts(above[threshold], tasks).to_dict(),
        )
        for threshold in thresholds
    )
    pairs = tuple(
        ThresholdPair(thresholds=(a, b), jaccard=jaccard(agnostic[a], agnostic[b]))
        for a, b in combinations(thresholds, 2)
    )
    return ThresholdStability(sizes=sizes, jaccard=pairs)


def jaccard(first: set[int], second: set[int]) -> float:
    """|A ∩ B| / |A ∪ B|; NaN for two empty sets.

    Example:
        >>> jaccard({1, 2}, {2, 3})
        0.3333333333333333
    """
    union = first | second
    return len(first & second) / len(union) if union else float("nan")
