"""Rank correlation of behavioural drift with other numbers of the same checkpoints, with permutation tests.

The unit is a checkpoint. The null hypothesis is that the numbers of the checkpoints of an arm are exchangeable; it is rejected by
any two curves that rise with training, whether or not one follows the other. The detrended correlation is therefore Spearman's
partial correlation given the step: a straight line in the rank of the step is removed from the ranks of both. (Ranks of log
step are the same. A line in log step itself leaves a common bend in the ranks of two monotone curves.) Orders of the residuals
are made free of the step again (Freedman & Lane 1983). Of pairs of curves that share a smooth trend alone, about 5 to 11 % are
called correlated at 5 %; of those that share a jump, up to 20 %, because a line does not remove it. (All of this is ours.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import permutations
from math import factorial, prod

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.drift.probe.profile import Norm
from mechprobe.drift.probe.result import Correlation
from mechprobe.emergence.arms import Arm
from mechprobe.statistics import holm

MIN_CHECKPOINTS = 6
"""Checkpoints of an arm below which nothing is claimed."""
MAX_EXACT = 100_000
"""Largest number of permutations that are all counted; of more, `N_DRAWN` are drawn."""
N_DRAWN = 9_999


@dataclass(frozen=True)
class Points:
    """Two numbers of the checkpoints of one arm, in order of training; ``progress`` is the share of training done, above 0."""

    progress: Float[ndarray, " checkpoint"]
    x: Float[ndarray, " checkpoint"]
    y: Float[ndarray, " checkpoint"]


@dataclass(frozen=True)
class Association:
    """A rank correlation over checkpoints.

    Attributes:
        rho: The correlation; NaN where one side does not vary.
        p: Two-sided permutation p-value, see `mechprobe.drift.probe.correlation`; NaN where nothing is claimed.
        n: Checkpoints.
        exact: Whether all permutations were counted.
    """

    rho: float
    p: float
    n: int
    exact: bool


def associate(arms: Sequence[Points], *, detrend: bool, seed: int) -> Association:
    """Spearman correlation over the checkpoints of one arm or several, with a test that permutes checkpoints within their arm.

    Ranks are those within the arm, centred and scaled to [−1, 1], so that a difference between arms is no correlation. Arms
    of fewer than `MIN_CHECKPOINTS` add to the pooled number, but with fewer than this in all nothing is tested.

    Args:
        arms: The numbers by arm.
        detrend: Whether the residuals of both ranks after a straight line in the rank of the step are correlated instead.
        seed: Seed of drawn permutations.
    """
    sides = [_Sides.of(arm, detrend=detrend) for arm in arms if len(arm.x) > 1 + detrend]
    n = sum(len(side.x) for side in sides)
    if not sides:
        return Association(float("nan"), float("nan"), 0, exact=False)
    rho = float(_together([side.sums(side.y[None]) for side in sides])[0])
    if not np.isfinite(rho) or n < MIN_CHECKPOINTS:
        return Association(rho, float("nan"), n, exact=False)
    total = prod(factorial(len(side.x)) for side in sides)
    exact = total <= MAX_EXACT
    drawn = np.nan_to_num(_all(sides) if exact else _drawn(sides, seed))
    extreme = int((np.abs(drawn) >= abs(rho) - 1e-9).sum())
    return Association(rho, extreme / total if exact else (1 + extreme) / (1 + N_DRAWN), n, exact)


Sums = tuple[ndarray, ndarray, ndarray]
"""Σ x y, Σ x² and Σ y², by permutation."""


@dataclass(frozen=True)
class _Sides:
    """Centred ranks of one arm, or their residuals, and the design that both are free of."""

    x: Float[ndarray, " checkpoint"]
    y: Float[ndarray, " checkpoint"]
    design: Float[ndarray, "checkpoint column"]

    @classmethod
    def of(cls, arm: Points, *, detrend: bool) -> "_Sides":
        from scipy.stats import rankdata

        n = len(arm.x)
        ranks = np.stack([(rankdata(side) - (n + 1) / 2) / max(1.0, (n - 1) / 2) for side in (arm.x, arm.y)])
        columns = [np.ones(n), *([rankdata(arm.progress)] if detrend else [])]
        design = np.linalg.qr(np.stack(columns, axis=1))[0]
        return cls(cls._free(ranks[0], design), cls._free(ranks[1], design), design)

    @staticmethod
    def _free(rows: ndarray, design: ndarray) -> ndarray:
        left = rows - rows @ design @ design.T
        return np.where(np.abs(left) < 1e-9, 0.0, left)

    def sums(self, y: Float[ndarray, "permutation checkpoint"]) -> Sums:
        """Sums with other orders of y, which are made free of the design again (Freedman & Lane 1983)."""
        free = self._free(y, self.design)
        return free @ self.x, np.full(len(y), self.x @ self.x), np.square(free).sum(axis=1)


def _correlation(xy: ndarray, xx: ndarray, yy: ndarray) -> ndarray:
    scale = np.sqrt(xx * yy)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 1e-9, xy / scale, np.nan)


def _all(sides: Sequence[_Sides]) -> Float[ndarray, " permutation"]:
    """The correlation under every permutation of y within its arm."""
    each = [side.sums(np.array(list(permutations(side.y)))) for side in sides]
    return _correlation(*(reduce(np.add.outer, parts).ravel() for parts in zip(*each, strict=True)))


def _drawn(sides: Sequence[_Sides], seed: int) -> Float[ndarray, " permutation"]:
    rng = np.random.default_rng(seed)
    each = [side.sums(rng.permuted(np.tile(side.y, (N_DRAWN, 1)), axis=1)) for side in sides]
    return _together(each)


def _together(each: Sequence[Sums]) -> ndarray:
    """The correlation over all arms, permutation by permutation."""
    return _correlation(*(np.sum(parts, axis=0) for parts in zip(*each, strict=True)))


POOLED = "pooled"


def correlations(
    drift: Mapping[str, Norm], arms: Sequence[Arm], numbers: Mapping[str, Mapping[str, float]], seed: int
) -> tuple[Correlation, ...]:
    """Correlate the drift of the checkpoints with each of several numbers, within every arm and pooled over all arms.

    Args:
        drift: Model → drift (L1).
        arms: Arms; those of fewer than three checkpoints are left out.
        numbers: Name → model → number; one that fewer than three checkpoints have is left out.
        seed: Seed of drawn permutations.
    """
    x = {model: norm.value for model, norm in drift.items()}
    long = [arm for arm in arms if len(arm.checkpoints) > 2]
    groups = {arm.name: [arm] for arm in long} | ({POOLED: long} if len(long) > 1 else {})
    found: list[Correlation] = []
    for name, members in groups.items():
        for detrend in (False, True):
            tested = {
                number: associate(
                    [points_of(arm.checkpoints, arm.progress[1:], x, values) for arm in members],
                    detrend=detrend,
                    seed=seed,
                )
                for number, values in numbers.items()
            }
            tested = {number: each for number, each in tested.items() if each.n > 2}
            adjusted = holm([each.p for each in tested.values()]) if tested else []
            found += [
                Correlation(number=number, arm=name, detrended=detrend, p_holm=p_holm, **vars(each))
                for (number, each), p_holm in zip(tested.items(), adjusted, strict=True)
            ]
    return tuple(found)


def points_of(
    checkpoints: Sequence[str], progress: Sequence[float], x: Mapping[str, float], y: Mapping[str, float]
) -> Points:
    """The checkpoints of one arm that have both numbers."""
    kept = [
        place
        for place, name in enumerate(checkpoints)
        if np.isfinite(x.get(name, np.nan)) and np.isfinite(y.get(name, np.nan))
    ]
    columns = ([progress[k] for k in kept], [x[checkpoints[k]] for k in kept], [y[checkpoints[k]] for k in kept])
    return Points(*(np.array(column, dtype=np.float64) for column in columns))
