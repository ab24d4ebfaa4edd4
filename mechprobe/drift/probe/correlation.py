"""Rank correlation of behavioural drift with other numbers of the same checkpoints, with permutation tests.

The unit is a checkpoint. The null hypothesis is that the numbers of the checkpoints of an arm are exchangeable; it is rejected by
any two curves that rise with training, whether or not one follows the other. The detrended correlation therefore removes log
progress from the ranks of both. Detrended residuals are exchangeable only approximately. (All of this is ours.)
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
        detrend: Whether the residuals of both ranks after a straight line in log progress are correlated instead.
        seed: Seed of drawn permutations.
    """
    pairs = [_scores(arm, detrend=detrend) for arm in arms if len(arm.x) > 1 + detrend]
    n = sum(len(x) for x, _ in pairs)
    scale = np.sqrt(sum((x**2).sum() for x, _ in pairs) * sum((y**2).sum() for _, y in pairs)) if pairs else 0.0
    if scale < 1e-9:
        return Association(float("nan"), float("nan"), n, exact=False)
    found = float(sum((x * y).sum() for x, y in pairs) / scale)
    if n < MIN_CHECKPOINTS:
        return Association(found, float("nan"), n, exact=False)
    total = prod(factorial(len(x)) for x, _ in pairs)
    exact = total <= MAX_EXACT
    drawn = (_all_sums(pairs) if exact else _drawn_sums(pairs, seed)) / scale
    extreme = int((np.abs(drawn) >= abs(found) - 1e-9).sum())
    return Association(found, extreme / total if exact else (1 + extreme) / (1 + N_DRAWN), n, exact)


def _scores(arm: Points, *, detrend: bool) -> tuple[ndarray, ndarray]:
    """Centred ranks of both numbers, or their residuals."""
    from scipy.stats import rankdata

    n = len(arm.x)
    ranks = np.stack([(rankdata(side) - (n + 1) / 2) / max(1.0, (n - 1) / 2) for side in (arm.x, arm.y)], axis=1)
    if detrend:
        design = np.stack([np.ones(n), np.log(arm.progress)], axis=1)
        ranks = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
        ranks[np.abs(ranks) < 1e-9] = 0.0
    return ranks[:, 0], ranks[:, 1]


def _all_sums(pairs: Sequence[tuple[ndarray, ndarray]]) -> Float[ndarray, " permutation"]:
    """Σ x y under every permutation of y within its arm."""
    each = [np.array(list(permutations(y))) @ x for x, y in pairs]
    return reduce(np.add.outer, each).ravel()


def _drawn_sums(pairs: Sequence[tuple[ndarray, ndarray]], seed: int) -> Float[ndarray, " permutation"]:
    rng = np.random.default_rng(seed)
    return np.sum([rng.permuted(np.tile(y, (N_DRAWN, 1)), axis=1) @ x for x, y in pairs], axis=0)


POOLED = "pooled"


def correlations(
    drift: Mapping[str, Norm], arms: Sequence[Arm], numbers: Mapping[str, Mapping[str, float]], seed: int
) -> tuple[Correlation, ...]:
    """Correlate the drift of the checkpoints with each of several numbers, within every arm and pooled over all arms.

    Args:
        drift: Model → drift (L1).
        arms: Arms; those of fewer than three checkpoints are left out.
        numbers: Name → model → number.
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
                    [points_of(arm.checkpoints, arm.progress[1:], x, values) for arm in members], detrend=detrend, seed=seed
                )
                for number, values in numbers.items()
            }
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
