"""How large an effect must be to be found, and how many samples it takes, by the exact McNemar test."""

import numpy as np

from mechprobe.errors import ConfigError
from mechprobe.statistics import flips_p

MOST_SAMPLES = 1_000_000
"""Samples at which the search for a number of samples ends."""


def smallest_flips(n: int, alpha: float) -> int | None:
    """The fewest samples of ``n`` that, all changing one way, give p ≤ ``alpha``; None where n are too few.

    Example:
        >>> smallest_flips(64, 0.05), smallest_flips(64, 0.05 / 4), smallest_flips(5, 0.05)
        (6, 8, None)
    """
    return next((flips for flips in range(1, n + 1) if flips_p(0, flips) <= alpha), None)


def power(n: int, effect: float, one_way: float, alpha: float) -> float:
    """Probability that the exact McNemar test of n paired samples gives p ≤ ``alpha`` in the direction of the effect.

    A sample changes with probability effect / (2 one_way − 1), and a changed one changes in the direction of the effect with
    probability ``one_way``; so the expected change of accuracy is ``effect``.
    """
    from scipy.stats import binom

    changes = binom.pmf(np.arange(n + 1), n, effect / (2 * one_way - 1))
    total = 0.0
    for changed in np.flatnonzero(changes > 1e-12).tolist():
        against = binom.ppf(alpha / 2, changed, 0.5)  # the most changes against the effect that may be significant
        while against >= 0 and 2 * binom.cdf(against, changed, 0.5) > alpha:
            against -= 1
        total += changes[changed] * binom.cdf(against, changed, 1 - one_way)
    return float(total)


def samples_needed(effect: float, *, one_way: float = 0.9, alpha: float = 0.05, target: float = 0.8) -> int:
    """The smallest number of samples, to within the steps of an exact test, at which the `power` reaches ``target``.

    Args:
        effect: Expected change of accuracy, above 0 and at most 2 ``one_way`` − 1.
        one_way: Share of the changed samples that change in the direction of the effect, above 1/2.
        alpha: Level of the test, divided by the number of tests for the first step of Holm's procedure.
        target: Power.

    Raises:
        ConfigError: No sample size can have such an effect, or more than `MOST_SAMPLES` are needed.
    """
    if not 0 < alpha < 1 or not 0 < target < 1:
        raise ConfigError(f"The level ({alpha:g}) and the power ({target:g}) must lie between 0 and 1.")
    if not 0.5 < one_way <= 1:
        raise ConfigError(
            f"The share of changes in the direction of the effect ({one_way:g}) must be above 0.5 and at most 1."
        )
    if not 0 < effect <= 2 * one_way - 1:
        raise ConfigError(
            f"An effect of {100 * effect:g} points cannot come from changes of which {one_way:.0%} go one way; the effect lies "
            f"above 0 and at most at {100 * (2 * one_way - 1):g} points, and the share is above 50 %."
        )
    high = 1
    while power(high, effect, one_way, alpha) < target:
        high *= 2
        if high > MOST_SAMPLES:
            raise ConfigError(f"An effect of {100 * effect:g} points needs more than {MOST_SAMPLES:,} samples.")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect, one_way, alpha) >= target else (middle, high)
    return high
