"""Task-agnostic features, the order that puts them first, and how their set depends on the threshold.

Let v[t, k] be the value of feature k on task t under a ranking (`mechprobe.selection.rankings`). A feature is
task-agnostic when v[t, k] > threshold · max_k v[t, k] on every task; arXiv 2604.25011 uses a threshold of 0.2. Features
are ranked by the minimum over tasks of v[t, k] / max_k v[t, k]. This order is specific to mechprobe; the task-agnostic
features are its head. In all functions, ``values`` are those of a ranking and ``live`` marks the features that count.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.results import Number, Result


def relative_values(values: Float[ndarray, "task d_sae"]) -> Float[ndarray, "task d_sae"]:
    """v[t, k] / max_k v[t, k]; zeros for a task without a positive value."""
    top = values.max(axis=1, keepdims=True)
    return np.where(top > 0, values / np.where(top > 0, top, 1.0), 0.0)


def agnostic_features(
    values: Float[ndarray, "task d_sae"], threshold: float = 0.2, *, live: Bool[ndarray, " d_sae"]
) -> Int[ndarray, " agnostic"]:
    """Live features above ``threshold`` times the maximum on every task, highest minimum first.

    The maximum of a task is taken over all features, live or not, as in the ranking.
    """
    lowest = relative_values(values).min(axis=0)
    ids = np.flatnonzero((lowest > threshold) & live)
    return ids[np.argsort(-lowest[ids], kind="stable")]


def ranked_features(values: Float[ndarray, "task d_sae"]) -> Int[ndarray, " d_sae"]:
    """All features by the minimum over tasks of their relative value, highest first; ties are ordered by index."""
    return np.argsort(-relative_values(values).min(axis=0), kind="stable")


class AgnosticCounts(Result):
    """Live features above a threshold, a share of each task's maximum."""

    per_task: dict[str, int]
    all_tasks: int
    """Features above the threshold on every task: the task-agnostic ones."""


class ThresholdCounts(AgnosticCounts):
    """Live features above one threshold."""

    threshold: float
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


def agnostic_counts(
    values: Float[ndarray, "task d_sae"], tasks: Sequence[str], threshold: float, *, live: Bool[ndarray, " d_sae"]
) -> AgnosticCounts:
    """Count the live features above ``threshold`` times the maximum of each task, and those above it on all tasks."""
    above = (relative_values(values) > threshold) & live
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
    """Sizes of the task-agnostic set at several thresholds, their overlap with the selection, and all Jaccard indices.

    The sets are nested, so the Jaccard index of two sets is the ratio of their sizes.
    """
    sets = {threshold: set(agnostic_features(values, threshold, live=live).tolist()) for threshold in thresholds}
    sizes = tuple(
        ThresholdCounts(
            threshold=threshold,
            n_selected=len(sets[threshold] & set(features)),
            **agnostic_counts(values, tasks, threshold, live=live).to_dict(),
        )
        for threshold in thresholds
    )
    pairs = combinations(thresholds, 2)
    return ThresholdStability(
        sizes=sizes,
        jaccard=tuple(ThresholdPair(thresholds=(a, b), jaccard=jaccard(sets[a], sets[b])) for a, b in pairs),
    )


def jaccard(first: set[int], second: set[int]) -> float:
    """|A ∩ B| / |A ∪ B|; NaN for two empty sets.

    Example:
        >>> jaccard({1, 2}, {2, 3})
        0.3333333333333333
    """
    union = first | second
    return len(first & second) / len(union) if union else float("nan")
