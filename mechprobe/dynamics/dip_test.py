"""p-values of the dip statistic: its distribution over flat curves and over gains, by simulation for the curve at hand."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.dip_statistic import Noise, dip_statistic

HEIGHTS = (1.75, 2.5, 3.5, 8.0)
"""Heights of the simulated gains, in standard errors of the difference; the last stands for every larger one."""
_FLAT = 4
"""Flat curves to each gain."""


@dataclass(frozen=True)
class Calibration:
    """Sorted statistics of simulated curves without a dip.

    Attributes:
        flat: Of flat curves.
        gains: Of each kind of gain.
    """

    flat: Float[ndarray, " draw"]
    gains: tuple[Float[ndarray, " draw"], ...]

    def p_values(self, statistics: Float[ndarray, " curve"]) -> Float[ndarray, " curve"]:
        """The largest p-value over flat curves and gains, (1 + #{draws as large}) / (1 + #draws)."""
        return np.max([_p(draws, statistics) for draws in (self.flat, *self.gains)], axis=0)


def _p(draws: Float[ndarray, " draw"], statistics: Float[ndarray, " curve"]) -> Float[ndarray, " curve"]:
    larger = len(draws) - np.searchsorted(draws, statistics, side="left")
    return (1 + larger) / (1 + len(draws))


def calibrate(noise: Noise, *, draws: int, seed: int) -> Calibration:
    """Simulate the statistic for one curve's noise: flat, and gains from the second, third, middle and last checkpoint on.

    All kinds share their noise, so that the largest p-value over the kinds is not the luckiest of many simulations. Standard
    errors count relative to base and rounded to 5 %; equal ones are simulated once.
    """
    ratios = np.log(np.array(noise.checkpoints) / noise.base) / np.log(1.05)
    rounded = tuple(float(1.05**value) for value in np.clip(np.round(ratios), -60, 60))
    return _simulated(Noise(1.0, rounded), draws, seed)


@lru_cache(maxsize=64)
def _simulated(noise: Noise, draws: int, seed: int) -> Calibration:
    n = len(noise.checkpoints)
    errors = noise.draw(np.random.default_rng(seed), _FLAT * draws)
    gains = []
    for start in sorted({1, 2, n // 2, n - 1} & set(range(1, n))):
        for height in HEIGHTS:
            mean = np.concatenate([np.zeros(1 + start), height * noise.differences[start:]])
            gains.append(np.sort(dip_statistic(errors[:draws] + mean, noise)))
    return Calibration(np.sort(dip_statistic(errors, noise)), tuple(gains))
