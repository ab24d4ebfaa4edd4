"""How a selection depends on the samples of G_t.

The samples of every G_t are drawn again with replacement, the ranking's values are computed anew, and the specification
chooses again. A feature's frequency is the share of draws in which it is chosen. This is stability selection (Meinshausen
and Bühlmann 2010) with bootstrap samples in place of half samples; its use here is specific to mechprobe. All draws are
computed as one matrix product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from pydantic import model_serializer

from mechprobe.results import Result
from mechprobe.selection.agnostic import ThresholdStability, relative_values
from mechprobe.selection.rules import spec_size
from mechprobe.statistics import Interval

_CHUNK = 1 << 22
"""Values, features times draws, that are held at a time."""


class BootstrapSummary(Result):
    """A specification on resampled G_t, as ``selection.json`` keeps it."""

    n_draws: int
    seed: int
    frequency: tuple[float, ...]
    """Share of the draws in which each selected feature is chosen."""
    jaccard: tuple[float, float, float]
    """Jaccard index of the drawn sets with the selection: median and 95 % percentile interval over the draws."""
    n_in_95_percent: int
    """Selected features that at least 95 % of the draws choose."""
    n_in_half: int
    """Selected features that at least half of the draws choose."""
    n_outside_in_half: int
    """Other features that at least half of the draws choose."""


class Stability(Result):
    """How a selection depends on the threshold and on the samples."""

    thresholds: ThresholdStability
    bootstrap: BootstrapSummary | None = None
    """None if no draws were asked for, or if the specification does not depend on samples; not written then."""

    @model_serializer(mode="wrap")
    def _without_none(self, handler: Callable[[Any], Any]) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


@dataclass(frozen=True)
class SampleValues:
    """The parts of a ranking's values, sample by sample.

    Attributes:
        tasks: For every task ``[part sample d_sae]``. Parts are averaged over samples and then combined.
        combine: Function from the means of the parts ``[part draw d_sae]`` to the values of the ranking
            ``[draw d_sae]``; by default there is one part, whose means are the values.
    """

    tasks: tuple[Float[ndarray, "part _sample d_sae"], ...]
    combine: Callable[[ndarray], ndarray] = itemgetter(0)

    def values(self) -> Float[ndarray, "task d_sae"]:
        """The ranking's values on all samples."""
        means = (parts.mean(axis=1, dtype=np.float64)[:, None] for parts in self.tasks)
        return np.concatenate([self.combine(mean) for mean in means])


@dataclass(frozen=True)
class Bootstrap:
    """A specification on resampled G_t."""

    frequency: Float[ndarray, " d_sae"]
    """Share of the draws in which each feature is chosen; 0 for dead features."""
    jaccard: Interval
    """Median and 95 % percentile interval over the draws of the Jaccard index with the selection."""

    def summary(self, features: Sequence[int], *, seed: int) -> BootstrapSummary:
        """The record for ``selection.json``: frequencies of the selected features, and counts of the others."""
        own = self.frequency[list(features)]
        outside = np.delete(self.frequency, list(features))
        return BootstrapSummary(
            n_draws=self.jaccard.n,
            seed=seed,
            frequency=tuple(own.tolist()),
            jaccard=self.jaccard[:3],
            n_in_95_percent=int((own >= 0.95).sum()),
            n_in_half=int((own >= 0.5).sum()),
            n_outside_in_half=int((outside >= 0.5).sum()),
        )


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
        samples: Values of the ranking by sample.
        spec: ``top:N`` or ``agnostic``. Any other specification does not depend on samples and gives None.
        features: The selection, for the Jaccard index.
        live: Features that may be chosen.
        threshold: Share of a task's maximum above which a feature counts as task-agnostic.
        n_draws: Number of draws; 0 gives None.
        seed: Seed of the draws.
    """
    size = spec_size(spec)
    if n_draws < 1 or (size is None and spec != "agnostic"):
        return None
    nonzero = np.any([(parts != 0).any(axis=(0, 1)) for parts in samples.tasks], axis=0)
    used = np.flatnonzero(live | nonzero)
    alive, own = live[used], np.searchsorted(used, [k for k in features if live[k]])
    counts, shares = np.zeros(len(used), dtype=np.int64), []
    for lowest in _resampled(samples, used, n_draws, seed):
        lowest[:, ~alive] = -np.inf  # a dead feature may have the largest value, but is never chosen
        chosen = (lowest > threshold if size is None else highest(lowest, size)) & alive
        counts += chosen.sum(axis=0)
        shared = chosen[:, own].sum(axis=1)
        shares.append(shared / np.maximum(1, chosen.sum(axis=1) + len(features) - shared))
    frequency = np.zeros(len(live))
    frequency[used] = counts / n_draws
    low, middle, high = np.quantile(np.concatenate(shares), [0.025, 0.5, 0.975])
    return Bootstrap(frequency, Interval(float(middle), float(low), float(high), n_draws))


def _resampled(samples: SampleValues, used: ndarray, n_draws: int, seed: int) -> Iterator[Float[ndarray, "draw used"]]:
    """The minimum over tasks of the relative values of the features ``used``, for a block of draws at a time."""
    rng = np.random.default_rng([seed, 5])
    sizes = [parts.shape[1] for parts in samples.tasks]
    weights = [rng.multinomial(n, np.full(n, 1 / n), size=n_draws).astype(np.float32) / n for n in sizes]
    values = [np.ascontiguousarray(parts[..., used], dtype=np.float32) for parts in samples.tasks]
    step = max(1, _CHUNK // max(1, len(used)))
    for start in range(0, n_draws, step):
        lowest = np.full((min(step, n_draws - start), len(used)), np.inf)
        for weight, parts in zip(weights, values, strict=True):
            means = np.stack([weight[start : start + step] @ part for part in parts])
            lowest = np.minimum(lowest, relative_values(samples.combine(means).astype(np.float64)))
        yield lowest


def highest(values: Float[ndarray, "draw alive"], n: int) -> Bool[ndarray, "draw alive"]:
    """The ``n`` highest values of every draw, with ties ordered as in `mechprobe.selection.agnostic.ranked_features`.

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
