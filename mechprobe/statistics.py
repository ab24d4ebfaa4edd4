"""Confidence intervals and tests on outcomes. Random draws take a seed, and intervals state their n."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """A point estimate with its two-sided 95 % interval and the number of samples."""

    value: float
    low: float
    high: float
    n: int


def binomial_se(successes: int, n: int) -> float:
    """Standard error of a proportion, √(p(1−p)/n); NaN for n = 0."""
    if n == 0:
        return float("nan")
    p = successes / n
    return float(np.sqrt(p * (1 - p) / n))


def wilson_interval(successes: int, n: int, z: float = 1.959963984540054) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927); [0, 1] for n = 0."""
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0, 0)
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, float(min(p, max(0.0, center - half))), float(max(p, min(1.0, center + half))), n)


_INDICES = 1 << 20
"""Number of indices that are drawn at a time."""


def _resampled(n: int, draws: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield bootstrap samples of n indices as arrays ``[draw n]`` of bounded size, ``draws`` samples in total."""
    rows = max(1, _INDICES // n)
    for start in range(0, draws, rows):
        yield rng.integers(0, n, (min(rows, draws - start), n))


def bootstrap_mean(values: ArrayLike, *, seed: int, draws: int = 2000) -> Interval:
    """Percentile bootstrap interval of a mean over samples; NaN for no samples."""
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    means = np.concatenate([data[rows].mean(axis=1) for rows in _resampled(n, draws, rng)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high), n)


def bootstrap_ratio(totals: ArrayLike, counts: ArrayLike, *, seed: int, draws: int = 2000) -> Interval:
    """Percentile bootstrap interval of Σ totals / Σ counts over groups, such as a mean per token over texts.

    Tokens of one text depend on each other, so texts are resampled instead of tokens. ``n`` is Σ counts.
    """
    sums, sizes = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    total = int(sizes.sum())
    if total == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    drawn = [sums[rows].sum(axis=1) / sizes[rows].sum(axis=1) for rows in _resampled(len(sums), draws, rng)]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high), total)


def paired_bootstrap(before: ArrayLike, after: ArrayLike, *, seed: int, draws: int = 2000) -> Interval:
    """Percentile bootstrap interval of mean(after − before) over the same samples; `ValueError` for unequal lengths."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired samples need equal lengths, got {first.shape} and {second.shape}")
    return bootstrap_mean(second - first, seed=seed, draws=draws)


def mcnemar_exact(before: ArrayLike, after: ArrayLike) -> float:
    """Two-sided exact McNemar p-value for paired right/wrong samples (a binomial test of the discordant pairs)."""
    from scipy.stats import binomtest

    first, second = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    lost, gained = int((first & ~second).sum()), int((~first & second).sum())
    if lost + gained == 0:
        return 1.0
    return float(binomtest(lost, lost + gained, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values in the given order (Holm 1979); NaN stays NaN and does not count as a test."""
    tested = [index for index in np.argsort(p_values) if not np.isnan(p_values[index])]
    adjusted: NDArray[np.float64] = np.full(len(p_values), np.nan)
    running = 0.0
    for rank, index in enumerate(tested):
        running = max(running, (len(tested) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted.tolist()


def randomization_p(observed: float, draws: Sequence[float], *, side: str = "greater") -> float:
    """p-value of ``observed`` against random draws, (1 + #{draws as extreme}) / (1 + #draws); NaN without draws."""
    if not draws:
        return float("nan")
    sign = 1.0 if side == "greater" else -1.0
    extreme = sum(sign * draw >= sign * observed for draw in draws)
    return (1 + extreme) / (1 + len(draws))
