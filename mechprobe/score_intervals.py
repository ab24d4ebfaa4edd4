"""Score intervals of a mean, and of a ratio of two means, over samples whose values come from a few known numbers.

The test of a mean δ divides (mean − δ) by its standard error under the constrained maximum likelihood estimate of the shares
p_k of the values w_k: Σ x_k log p_k is largest subject to Σ p_k = 1 and Σ p_k w_k = δ, where x_k counts the samples with w_k.
Values that no sample has may get a share, too, so the interval keeps its width where few samples change. The interval holds
every δ that the test at 5 % does not reject. For values 0 and 1 it is the interval of Wilson (1927), and for values −1, 0 and 1,
the differences of paired binary outcomes, that of Tango (1998). The form for other values and for ratios is ours.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, repeat

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, behind every 95 % interval that needs one."""

_EDGE = 1e-9
"""Distance from the ends of a range at which a test is still defined."""
_CHANGES = tuple((e, c) for e in (-1, 0, 1) for c in (-1, 0, 1) if e * c >= 0)
"""What two edits can do to one binary outcome: (0, 0), or both move it the one way that is open."""


def score_statistic(counts: Sequence[int], values: Sequence[float], mean: float) -> float:
    """(sample mean − ``mean``) / its standard error if ``mean`` is the truth, which must lie strictly between the values."""
    n = sum(counts)
    away = [value - mean for value in values]
    if sum(count * step for count, step in zip(counts, away, strict=True)) == 0:
        return 0.0  # also where all samples have the assumed mean, and the standard error is 0
    shares = _constrained_shares(counts, away, n)
    variance = sum(share * step * step for share, step in zip(shares, away, strict=True)) / n
    found = sum(count * step for count, step in zip(counts, away, strict=True)) / n
    return found / variance**0.5


def _constrained_shares(counts: Sequence[int], away: Sequence[float], n: int) -> list[float]:
    """Maximum likelihood shares of values whose distances from the assumed mean are ``away``.

    They are x_k / (n + t a_k), with t such that Σ share a_k = 0. Where t would pass the end of its range, at which n + t a_k = 0
    for the outermost value, that value has no sample, and it takes the rest of the mass.
    """

    def balance(t: float) -> float:
        return sum(x * a / (n + t * a) for x, a in zip(counts, away, strict=True) if x)

    outer = max(away) if balance(0.0) < 0 else min(away)
    end = -n / outer * (1 - 1e-12)
    over = balance(end)
    if over * balance(0.0) <= 0:
        t = _root(balance, 0.0, end, 1e-12 * n)
        return [x / (n + t * a) for x, a in zip(counts, away, strict=True)]
    shares = [x / (n + end * a) if x else 0.0 for x, a in zip(counts, away, strict=True)]
    shares[away.index(outer)] = -over / outer
    return shares


@lru_cache(maxsize=1 << 16)
def mean_interval(counts: tuple[int, ...], values: tuple[float, ...]) -> tuple[float, float]:
    """Ends of the 95 % score interval of the mean of values that the given numbers of samples have, at least one in all."""
    n = sum(counts)
    mean = sum(x * w for x, w in zip(counts, values, strict=True)) / n
    least, most = min(values), max(values)

    def test(assumed: float) -> float:
        return score_statistic(counts, values, assumed)

    low = _crossing(test, Z, (mean, least + _EDGE)) if mean > least + _EDGE else None
    high = _crossing(test, -Z, (mean, most - _EDGE)) if mean < most - _EDGE else None
    return least if low is None else low, most if high is None else high


def difference_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Ends of Tango's interval of (gained − lost) / n, the change of a share over the same n samples."""
    return mean_interval((lost, n - lost - gained, gained), (-1.0, 0.0, 1.0))


@lru_cache(maxsize=1 << 12)
def changes_ratio_interval(counts: tuple[int, ...]) -> tuple[float, float]:
    """Ends of the interval of Σ e / Σ c, where ``counts`` are the numbers of samples with each pair (e, c) of `change_counts`.

    It holds every ratio r for which the test does not reject that e − r c has mean 0 (Fieller 1954, with the score test). An
    end is infinite where the data set no limit; there is one if the interval of the mean of c excludes 0.
    """

    def test(ratio: float) -> float:
        return score_statistic(counts, [e - ratio * c for e, c in _CHANGES], 0.0)

    effect, reference = (sum(x * pair[part] for x, pair in zip(counts, _CHANGES, strict=True)) for part in (0, 1))
    return ratio_ends(test, effect / reference, sign=1.0 if reference > 0 else -1.0, limit=Z)


def change_counts(pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """How many samples have each pair of changes (e, c) that two edits can make to one binary outcome."""
    return tuple(pairs.count(pair) for pair in _CHANGES)


def ratio_ends(test: Callable[[float], float], ratio: float, *, sign: float, limit: float) -> tuple[float, float]:
    """Where ``sign`` × ``test``, which falls with the ratio and is 0 at ``ratio``, crosses ± ``limit``; infinite if nowhere."""

    def toward(side: float) -> float:
        for step in accumulate(repeat(2.0, 40), lambda a, b: a * b, initial=0.125):
            if -side * sign * test(ratio + side * step) > limit:
                found = _crossing(test, -side * sign * limit, (ratio, ratio + side * step))
                return ratio + side * step if found is None else found
        return side * float("inf")

    return toward(-1.0), toward(1.0)


def _crossing(test: Callable[[float], float], level: float, between: tuple[float, float]) -> float | None:
    """Where ``test`` equals ``level``; None where it does not reach it between the two values."""
    start, end = between
    if (test(start) - level) * (test(end) - level) > 0:
        return None
    return _root(lambda value: test(value) - level, start, end, 1e-12)


def _root(function: Callable[[float], float], start: float, end: float, precision: float) -> float:
    """Where a function is 0 between two arguments at which it has different signs, or is 0 (Brent's method)."""
    from scipy.optimize import root_scalar

    return float(root_scalar(function, bracket=(start, end), xtol=precision).root)
