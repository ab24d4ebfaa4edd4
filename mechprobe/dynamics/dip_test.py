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
    gains: tuple[Float[ndarray, " gain_draw"], ...]

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


@dataclass(frozen=True, eq=False)
class CurveTester:
    """The simulated tests of curves with one noise.

    Attributes:
        permuted: Flat curves from permuted items, whose p-values count beside those of the simulation; None without items.
    """

    noise: Noise
    calibration: Calibration
    permuted: Float[ndarray, "draw score"] | None = None
    seed: int = 0

    @classmethod
    def of(
        cls, noise: Noise, *, draws: int, seed: int, permuted: Float[ndarray, "draw score"] | None = None
    ) -> "CurveTester":
        """Simulate for a noise."""
        return cls(noise, calibrate(noise, draws=draws, seed=seed), permuted, seed)

    def dips(self, curves: Float[ndarray, "curve score"]) -> Float[ndarray, " curve"]:
        """p-values of a stretch below base."""
        found = dip_statistic(curves, self.noise)
        simulated = self.calibration.p_values(found)
        if self.permuted is None:
            return simulated
        return np.maximum(simulated, _p(np.sort(dip_statistic(self.permuted, self.noise)), found))

    def gains(self, curves: Float[ndarray, "curve score"]) -> Float[ndarray, " curve"]:
        """p-values of a stretch above base: `dips` of the curves turned upside down."""
        upside_down = None if self.permuted is None else -self.permuted
        return CurveTester(self.noise, self.calibration, upside_down).dips(-curves)

    def late_declines(self, curves: Float[ndarray, "curve score"]) -> Float[ndarray, " curve"]:
        """p-values of max_t (s_t − s_T) / √(SE_t² + SE_T²) over checkpoints t before the last one, T, against flat curves."""
        draws = self.noise.draw(np.random.default_rng(self.seed), len(self.calibration.flat))
        return _p(np.sort(_late(draws, self.noise)), _late(curves, self.noise))


def _late(curves: Float[ndarray, "curve score"], noise: Noise) -> Float[ndarray, " curve"]:
    errors = np.hypot(noise.checkpoints[:-1], noise.checkpoints[-1])
    return ((curves[:, 1:-1] - curves[:, -1:]) / errors).max(axis=1)
