"""Confidence intervals and tests on outcomes. Random draws take a seed, and intervals state their n."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.typing import ArrayLike, NDArray

from mechprobe.score_intervals import Z, change_counts, changes_ratio_interval, difference_interval, ratio_ends


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


def wilson_interval(successes: int, n: int, z: float = Z) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927); [0, 1] for n = 0."""
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0, 0)
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, float(min(p, max(0.0, center - half))), float(max(p, min(1.0, center + half))), n)


def _t(n: int) -> float:
    """The 97.5 % quantile of Student's t over n problems, with n − 1 degrees of freedom, at least one."""
    from scipy.special import stdtrit

    return float(stdtrit(max(1, n - 1), 0.975))


def clustered_interval(hits: ArrayLike, counts: ArrayLike | None = None) -> Interval:
    """Interval of Σ hits / Σ counts over problems, where the responses to one problem depend on each other.

    ``hits`` and ``counts`` are by problem; ``counts`` of None is 1 each, so that ``hits`` are shares. ``n`` is the number of
    problems that count. With m the mean count, z² further problems are added, half of them with m hits and half with none;
    p' is the ratio with them, and the interval is p' ± t √(V / N), with V the mean of (hits − p' count)² / m² over all N
    problems and t of n − 1 degrees of freedom. With one response to each problem and z for t, this is the interval of Agresti
    & Coull (1998). The extension to several responses is ours; the added problems keep its coverage where few problems decide.
    """
    totals = np.asarray(hits, dtype=np.float64)
    sizes = np.ones_like(totals) if counts is None else np.asarray(counts, dtype=np.float64)
    totals, sizes = totals[sizes > 0], sizes[sizes > 0]
    n = len(totals)
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0, 0)
    mean, added = sizes.mean(), Z * Z / 2
    value, center = totals.sum() / sizes.sum(), (totals.sum() / mean + added) / (n + 2 * added)
    squares = (((totals - center * sizes) / mean) ** 2).sum() + added * ((1 - center) ** 2 + center**2)
    half = _t(n) * np.sqrt(squares) / (n + 2 * added)
    low, high = max(0.0, min(value, center - half)), min(1.0, max(value, center + half))
    return Interval(float(value), float(low), float(high), n)


def share_interval(right: Bool[ndarray, "problem draw"]) -> Interval:
    """Interval of the share of right responses; ``n`` is the number of problems.

    With one response to each problem it is `wilson_interval`, with several `clustered_interval`.
    """
    n, draws = right.shape
    if draws == 1:
        return wilson_interval(int(right.sum()), n)
    return clustered_interval(right.sum(axis=1), np.full(n, draws))


def clustered_difference(before: ArrayLike, after: ArrayLike) -> Interval:
    """Interval of mean(after − before) over problems, from the share of right responses to each problem.

    The interval is d ± t √(V / N), cut to [−1, 1]. d is the mean difference. V is the variance of the differences with z²
    further problems: a quarter each at +1 and −1, and half at 0; N counts all, and t has n − 1 degrees of freedom. Agresti &
    Min (2005) add such pairs to single responses. Their number, and d as the centre, are ours.
    """
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    n = len(change)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    total = n + Z * Z
    variance = ((change**2).sum() + Z * Z / 2) / total - (change.sum() / total) ** 2
    value, half = float(change.mean()), float(_t(n) * np.sqrt(variance / total))
    return Interval(value, max(-1.0, value - half), min(1.0, value + half), n)


def welch_difference(first: ArrayLike, second: ArrayLike) -> Interval:
    """mean(first) − mean(second) of independent runs with the t interval of Welch (1947); NaN ends with fewer than two of one.

    ``n`` is the smaller number of runs. Without any spread within both groups the interval has no width.
    """
    from scipy.special import stdtrit

    groups = [np.asarray(group, dtype=np.float64) for group in (first, second)]
    value, n = float(groups[0].mean() - groups[1].mean()), min(map(len, groups))
    if n < 2:
        return Interval(value, float("nan"), float("nan"), n)
    errors = [float(group.var(ddof=1) / len(group)) for group in groups]
    total = sum(errors)
    parts = sum(error**2 / (len(group) - 1) for error, group in zip(errors, groups, strict=True))
    half = float(stdtrit(total**2 / parts, 0.975)) * total**0.5 if total > 0 else 0.0
    return Interval(value, value - half, value + half, n)


def sign_flip_exact(before: ArrayLike, after: ArrayLike) -> float:
    """Two-sided exact p-value of the sign-flip test of Σ (after − before) over problems.

    Under the null hypothesis the two arms are exchangeable within a problem, so that every difference has either sign with
    probability 1/2 (Fisher's randomization test). All sign patterns are counted. ``before`` and ``after`` hold the number
    of right responses to each problem, of equally many. With one response to each problem it is `mcnemar_exact`.
    """
    change = np.abs(np.asarray(after, dtype=np.int64) - np.asarray(before, dtype=np.int64))
    observed = abs(int(np.sum(np.asarray(after, dtype=np.int64) - np.asarray(before, dtype=np.int64))))
    reach = int(change.sum())
    probability = np.zeros(2 * reach + 1)  # of every sum from −reach to reach
    probability[reach] = 1.0
    for step in change[change > 0]:
        moved = np.zeros_like(probability)
        moved[step:] += probability[:-step] / 2
        moved[:-step] += probability[step:] / 2
        probability = moved
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(probability[sums >= observed].sum()))


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


def cluster_draws(
    cluster: Int[ndarray, " item"], *, draws: int, seed: int | Sequence[int]
) -> Float[ndarray, "draw item"]:
    """How often each item counts in each bootstrap draw of whole clusters; no draw for fewer than two clusters.

    Items of one cluster, such as positions of one sequence, depend on each other, so clusters are resampled.
    """
    _, place = np.unique(cluster, return_inverse=True)
    n = int(place.max()) + 1 if len(place) else 0
    rows = _resampled(n, draws, np.random.default_rng(seed)) if n > 1 else iter(())
    counted = [np.bincount(row, minlength=n).astype(np.float64) for part in rows for row in part]
    return np.stack(counted)[:, place] if counted else np.zeros((0, len(place)))


def paired_bootstrap(before: ArrayLike, after: ArrayLike, *, seed: int, draws: int = 2000) -> Interval:
    """Percentile bootstrap interval of mean(after − before) of numbers over the same samples; `paired_difference` is for right or wrong.

    Raises:
        ValueError: The lengths differ.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired samples need equal lengths, got {first.shape} and {second.shape}")
    return bootstrap_mean(second - first, seed=seed, draws=draws)


def paired_difference(before: Bool[ndarray, " sample"], after: Bool[ndarray, " sample"]) -> Interval:
    """Change of the share of right samples, with the score interval for paired binary outcomes (Tango 1998)."""
    n = len(before)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    return Interval((gained - lost) / n, *difference_interval(lost, gained, n), n)


def paired_change(before: Bool[ndarray, "problem draw"], after: Bool[ndarray, "problem draw"]) -> Interval:
    """Change of the share of right responses over the same problems.

    With one response to each problem it is `paired_difference`, with several `clustered_difference`.
    """
    if before.shape[1] == 1:
        return paired_difference(before[:, 0], after[:, 0])
    return clustered_difference(before.mean(axis=1), after.mean(axis=1))


def paired_ratio(
    before: Bool[ndarray, "problem draw"],
    after: Bool[ndarray, "problem draw"],
    reference: Bool[ndarray, "problem draw"],
) -> Interval:
    """Change of the share of right responses as a share of the change that ``reference`` makes on the same problems.

    The interval holds every ratio r for which (after − before) − r (reference − before) may have mean 0: by the score test with
    one response to each problem (`mechprobe.score_intervals`), by `clustered_difference` with several. It is NaN where the
    reference changes nothing on balance.
    """
    n, n_draws = before.shape
    change, whole = (part.mean(axis=1) - before.mean(axis=1) for part in (after, reference))
    total = float(whole.sum())
    if total == 0:
        return Interval(float("nan"), float("nan"), float("nan"), n)
    ratio = float(change.sum()) / total + 0.0  # 0 keeps no minus sign
    if n_draws == 1:
        pairs = list(zip(change.astype(int).tolist(), whole.astype(int).tolist(), strict=True))
        return Interval(ratio, *changes_ratio_interval(change_counts(pairs)), n)

    def test(assumed: float) -> float:
        found = clustered_difference(assumed * whole, change)
        return 2 * found.value / max(found.high - found.low, 1e-12)

    return Interval(ratio, *ratio_ends(test, ratio, sign=np.sign(total), limit=1.0), n)


def paired_p(before: Bool[ndarray, "problem draw"], after: Bool[ndarray, "problem draw"]) -> float:
    """p-value of a paired change: `mcnemar_exact` with one response to each problem, `sign_flip_exact` with several."""
    if before.shape[1] == 1:
        return mcnemar_exact(before[:, 0], after[:, 0])
    return sign_flip_exact(before.sum(axis=1), after.sum(axis=1))


def mcnemar_exact(before: ArrayLike, after: ArrayLike) -> float:
    """Two-sided exact McNemar p-value for paired right/wrong samples (a binomial test of the discordant pairs)."""
    first, second = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    return flips_p(int((first & ~second).sum()), int((~first & second).sum()))


@lru_cache(maxsize=1 << 16)
def flips_p(lost: int, gained: int) -> float:
    """Two-sided exact McNemar p-value for the numbers of samples that change each way."""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


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
