"""Task-agnostic features, and the order that puts them first.

Let v[t, k] be the value of feature k on task t under a ranking (`mechprobe.selection.rankings`). A feature is
task-agnostic when v[t, k] > threshold · max_k v[t, k] on every task; arXiv 2604.25011 uses a threshold of 0.2. Features
are ranked by the minimum over tasks of v[t, k] / max_k v[t, k]. This order is specific to mechprobe; the task-agnostic
features are its head.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray


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
