"""How far a selection hangs on the samples of G_t and on the threshold.

Bootstrap: the samples of every G_t are drawn again with replacement, the ranking's values are taken anew, and the
specification chooses again; a feature's frequency is the share of draws in which it is chosen (stability selection,
Meinshausen and Bühlmann 2010, with bootstrap samples in place of halves; its use here is ours). All draws are one matrix product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.selection.rules import relative_values, spec_size
from mechprobe.statistics import Interval

Means = Float[ndarray, "part draw d_sae"]
_CHUNK = 1 << 22
"""Values, of features times draws, that are held at a time."""


def first_part(means: Means) -> Float[ndarray, "draw d_sae"]:
    """The value of a ranking that is a plain mean over samples."""
    return means[0]


@dataclass(frozen=True)
class SampleValues:
    """What the values of a ranking are made of, sample by sample.

    Attributes:
        tasks: For every task ``[part sample d_sae]``; parts are averaged over samples, and then combined.
        combine: From the means of the parts to the value of the ranking.
    """

    tasks: tuple[Float[ndarray, "part _sample d_sae"], ...]
    combine: Callable[[ndarray], ndarray] = first_part

    def values(self) -> Float[ndarray, "task d_sae"]:
        """The ranking's values on the samples as they are."""
        means = (parts.mean(axis=1, dtype=np.float64)[:, None] for parts in self.tasks)
        return np.concatenate([self.combine(mean) for mean in means])


@dataclass(frozen=True)
class Bootstrap:
    """A specification on resampled G_t.

    Attributes:
        frequency: Share of the draws in which each feature is chosen; 0 where it is dead.
        jaccard: Median and 95 % percentile interval, over the draws, of the Jaccard index with the selection; n is draws.
    """

    frequency: Float[ndarray, " d_sae"]
    jaccard: Interval

    def summary(self, features: Sequence[int], *, seed: int) -> dict[str, Any]:
        """What ``selection.json`` keeps, of the selected features and of those that come as often."""
        own = self.frequency[list(features)]
        outside = np.delete(self.frequency, list(features))
        return {
            "n_draws": self.jaccard.n,
            "seed": seed,
            "frequency": own.tolist(),
            "jaccard": list(self.jaccard[:3]),
            "n_in_95_percent": int((own >= 0.95).sum()),
            "n_in_half": int((own >= 0.5).sum()),
            "n_outside_in_half": int((outside >= 0.5).sum()),
        }


def bootstrap_selection(
    samples: SampleValues,
    spec: str,
    features: Sequence[int],
    *,
    live: Bool[ndarray, " d_sae"],
    threshold: float,
    n_draws: int,
    seed: int,
) -> Bootstrap | None:
    """How often each feature is chosen when the samples of every G_t are drawn again.

    Args:
        samples: Of the ranking.
        spec: ``top:N`` or ``agnostic``; None comes back for a specification that does not hang on samples.
        features: The selection, for the Jaccard index.
        live: Features that may be chosen.
        threshold: Share of the maximum for task-agnostic features.
        n_draws: Draws.
        seed: Of the draws.
    """
    size = spec_size(spec)
    if n_draws < 1 or (size is None and spec != "agnostic"):
        return None
    used = np.flatnonzero(live | _nonzero(samples))
    alive, own = live[used], np.searchsorted(used, [k for k in features if live[k]])
    counts, shares = np.zeros(len(used), dtype=np.int64), []
    for lowest in _resampled(samples, used, n_draws, seed):
        lowest[:, ~alive] = -np.inf  # a dead feature may have the largest value, and is never chosen
        chosen = (lowest > threshold if size is None else highest(lowest, size)) & alive
        counts += chosen.sum(axis=0)
        shared = chosen[:, own].sum(axis=1)
        shares.append(shared / np.maximum(1, chosen.sum(axis=1) + len(features) - shared))
    frequency = np.zeros(len(live))
    frequency[used] = counts / n_draws
    low, middle, high = np.quantile(np.concatenate(shares), [0.025, 0.5, 0.975])
    return Bootstrap(frequency, Interval(float(middle), float(low), float(high), n_draws))


def _nonzero(samples: SampleValues) -> Bool[ndarray, " d_sae"]:
    """Features that any sample of any task has a value of."""
    return np.any([(parts != 0).any(axis=(0, 1)) for parts in samples.tasks], axis=0)


def _resampled(samples: SampleValues, used: ndarray, n_draws: int, seed: int) -> Iterator[Float[ndarray, "draw used"]]:
    """The minimum over tasks of the relative values of the features ``used``, for some draws at a time."""
    rng = np.random.default_rng([seed, 5])
    sizes = [parts.shape[1] for parts in samples.tasks]
    weights = [rng.multinomial(n, np.full(n, 1 / n), size=n_draws).astype(np.float32) / n for n in sizes]
    values = [np.ascontiguousarray(parts[..., used], dtype=np.float32) for parts in samples.tasks]
    step = max(1, _CHUNK // max(1, len(used)))
    for start in range(0, n_draws, step):
        lowest = None
        for weight, parts in zip(weights, values, strict=True):
            means = np.stack([weight[start : start + step] @ part for part in parts])
            relative = relative_values(samples.combine(means).astype(np.float64))
            lowest = relative if lowest is None else np.minimum(lowest, relative)
        if lowest is not None:
            yield lowest


def highest(values: Float[ndarray, "draw alive"], n: int) -> Bool[ndarray, "draw alive"]:
    """The ``n`` highest of every draw, ties by index, as `mechprobe.selection.rules.ranked_features` has them.

    Example:
        >>> highest(np.array([[1.0, 3.0, 1.0, 2.0]]), 3)
        array([[ True,  True, False,  True]])
    """
    width = values.shape[1]
    if n >= width:
        return np.ones(values.shape, dtype=bool)
    cut = np.partition(values, width - n, axis=1)[:, width - n, None]
    above, tied = values > cut, values == cut
    room = n - above.sum(axis=1, keepdims=True)
    return above | (tied & (np.cumsum(tied, axis=1) <= room))


def threshold_stability(
    values: Float[ndarray, "task d_sae"],
    tasks: Sequence[str],
    features: Sequence[int],
    *,
    live: Bool[ndarray, " d_sae"],
    thresholds: Sequence[float],
) -> dict[str, Any]:
    """Sizes of the task-agnostic set at several thresholds, and how much of it two thresholds share.

    The sets are nested, so the Jaccard index of two is the ratio of their sizes; NaN where both are empty.

    Args:
        values: Of the ranking.
        tasks: Names of the first axis.
        features: The selection; ``n_selected`` counts its members in each set.
        live: Features that count.
        thresholds: Shares of each task's maximum.
    """
    relative = np.where(live, relative_values(values), 0.0)
    above = {threshold: relative > threshold for threshold in thresholds}
    agnostic = {threshold: set(np.flatnonzero(rows.all(axis=0)).tolist()) for threshold, rows in above.items()}
    sizes = [
        {
            "threshold": threshold,
            "per_task": dict(zip(tasks, above[threshold].sum(axis=1).tolist(), strict=True)),
            "all_tasks": len(agnostic[threshold]),
            "n_selected": len(agnostic[threshold] & set(features)),
        }
        for threshold in thresholds
    ]
    pairs = [
        {"thresholds": [a, b], "jaccard": jaccard(agnostic[a], agnostic[b])} for a, b in combinations(thresholds, 2)
    ]
    return {"sizes": sizes, "jaccard": pairs}


def jaccard(first: set[int], second: set[int]) -> float:
    """|A ∩ B| / |A ∪ B|; NaN for two empty sets.

    Example:
        >>> jaccard({1, 2}, {2, 3})
        0.3333333333333333
    """
    union = first | second
    return len(first & second) / len(union) if union else float("nan")
