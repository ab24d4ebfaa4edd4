"""Drift of a skill profile over checkpoints, as pure functions of profiles.

Profiles are arrays ``[... column skill]`` with base in column 0 and checkpoints in order of training after it. arXiv 2512.24063
gives none of these formulas: all are specific to mechprobe, except where a source is named.

**A distance between noisy profiles is above 0 even if nothing changed.** Each number N of this kind is sublinear: N(a + b) ≤
N(a) + N(b). So what is found and what is true differ by at most the larger of N(noise) and N(−noise). With q the 95 % quantile
of this over bootstrap draws, [max(0, N − q), N + q] holds the true value in at least 95 % of cases, and its lower end is 0 where
noise alone can give the number. N minus the mean of N(noise) is 0 on average where nothing changed, and otherwise on average at
most the true value.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.results import Number

Order = Literal[1, 2]
Profile = Float[ndarray, "*lead column skill"]
Values = Float[ndarray, "*lead"] | np.float64
"""One number for each index before the last one or two; a scalar where there is none."""
Sublinear = Callable[[ndarray], Values]
"""Maps profiles ``[... column skill]`` to one number each, such that N(a + b) ≤ N(a) + N(b), and N(t a) = t N(a) for t ≥ 0."""


class Norm(NamedTuple):
    """A number that cannot be negative, see the head of this module.

    Attributes:
        value: The number.
        low: Lower end of its interval of at least 95 %; 0 where noise alone can give the number.
        high: Upper end.
        corrected: The number minus the mean that noise alone gives.
        null: What noise alone stays below in 95 % of draws.
        n: Items.
    """

    value: Number
    low: Number
    high: Number
    corrected: Number
    null: Number
    n: int


def norm_interval(
    measure: Sublinear,
    value: Float[ndarray, "column skill"],
    plain: Float[ndarray, "draw column skill"],
    smooth: Float[ndarray, "draw column skill"],
    n: int,
) -> Norm:
    """`Norm` of a sublinear ``measure`` of profiles.

    Args:
        measure: Maps profiles ``[... column skill]`` to one number each.
        value: The profiles found.
        plain: Their noise, by draw, for the correction.
        smooth: Their noise with that of few more items, for the interval (`mechprobe.drift.probe.scores.Resampled`).
        n: Items.
    """
    found, null = float(measure(value)), float(np.quantile(np.maximum(measure(smooth), measure(-smooth)), 0.95))
    mean = float(measure(plain).mean())
    return Norm(found, max(0.0, found - null), found + null, found - mean, null, n)


def distance(change: Float[ndarray, "*lead skill"], order: Order = 1) -> Values:
    """L1 or L2 norm over the skills.

    Example:
        >>> float(distance(np.array([0.3, -0.4]), 2))
        0.5
    """
    return np.abs(change).sum(axis=-1) if order == 1 else np.sqrt(np.square(change).sum(axis=-1))


def drift(profiles: Profile, column: int, order: Order = 1) -> Values:
    """Distance of a checkpoint from base: D_c = ‖p_c − p_base‖."""
    return distance(profiles[..., column, :] - profiles[..., 0, :], order)


def step_drift(profiles: Profile, column: int, order: Order = 1) -> Values:
    """Distance of a checkpoint from the one before it: ‖p_c − p_{c−1}‖."""
    return distance(profiles[..., column, :] - profiles[..., column - 1, :], order)


def path_length(profiles: Profile, order: Order = 1) -> Values:
    """Sum of all `step_drift`; at least the `drift` of the last checkpoint.

    Example:
        >>> float(path_length(np.array([[0.0], [1.0], [0.5]])))
        1.5
    """
    return distance(np.diff(profiles, axis=-2), order).sum(axis=-1)


def gains(profiles: Profile, column: int) -> Float[ndarray, "*lead skill"]:
    """Change of every skill from base to a checkpoint."""
    return profiles[..., column, :] - profiles[..., 0, :]


def loss(gain: Float[ndarray, "*lead skill"]) -> Values:
    """Sum over the skills of how far each falls below base; `drift` (L1) is this and the sum of the rises.

    Example:
        >>> float(loss(np.array([0.5, -0.25, -0.25])))
        0.5
    """
    return np.clip(-gain, 0, None).sum(axis=-1)


def imbalance(gain: Float[ndarray, "*lead skill"]) -> Values:
    """Standard deviation of the gains over the skills (with divisor n)."""
    return gain.std(axis=-1)


def gain_range(gain: Float[ndarray, "*lead skill"]) -> Values:
    """Largest gain minus smallest gain."""
    return gain.max(axis=-1) - gain.min(axis=-1)


def jaggedness(gain: Float[ndarray, "*lead skill"]) -> Values:
    """Mean distance of the gains from their mean, mean_s |gain_s − mean gain|.

    Example:
        >>> float(jaggedness(np.array([0.4, 0.0, 0.0, 0.0])))
        0.15
    """
    return np.abs(gain - gain.mean(axis=-1, keepdims=True)).mean(axis=-1)


def gain_entropy(gain: Float[ndarray, "*lead skill"]) -> Values:
    """Entropy of the positive gains over that of equal gains: 1 if all skills gain alike, 0 if one skill has all; NaN without a gain.

    Example:
        >>> float(gain_entropy(np.array([0.2, 0.2, -0.1, 0.0])))
        0.5
    """
    positive = np.clip(gain, 0, None)
    total = positive.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = positive / total
        terms = np.where(share > 0, share * np.log(share), 0.0)
    n = gain.shape[-1]
    found = -terms.sum(axis=-1) / np.log(n) if n > 1 else np.ones(gain.shape[:-1])
    return np.where(total[..., 0] > 0, found + 0.0, np.nan)


def drift_difference(
    first: Float[ndarray, " skill"],
    second: Float[ndarray, " skill"],
    noise_first: Float[ndarray, "draw skill"],
    noise_second: Float[ndarray, "draw skill"],
) -> tuple[float, float, float]:
    """Drift (L1) of one model minus that of another, with the ends of an interval of at least 95 %, from gains and their noise.

    The drift found is off by a sum over skills. Where a gain is clear of 0 (at 99.5 % over all skills of both), its sign is
    known and its noise counts with this sign; elsewhere the error is at most the size of the noise.
    """
    limit = np.quantile(np.abs(np.concatenate([noise_first, noise_second], axis=1)).max(axis=1), 0.995)
    known, unknown = np.zeros(len(noise_first)), np.zeros(len(noise_first))
    for gain, noise, side in ((first, noise_first, 1.0), (second, noise_second, -1.0)):
        clear = np.abs(gain) > limit
        known += side * noise[:, clear] @ np.sign(gain[clear])
        unknown += np.abs(noise[:, ~clear]).sum(axis=1)
    value = float(distance(first) - distance(second))
    return value, value - float(np.quantile(known + unknown, 0.975)), value + float(np.quantile(unknown - known, 0.975))


PERSISTENT, TRANSIENT, AT_THE_END = "persistent", "transient", "at the end"


def below_base(
    gain: Float[ndarray, "checkpoint skill"], error: Float[ndarray, "checkpoint skill"], delta: float
) -> Bool[ndarray, "checkpoint skill"]:
    """Where a skill is below base by more than max(``delta``, 2 standard errors of the paired gain)."""
    return gain < -np.maximum(delta, 2 * error)


def collapse_kind(below: Sequence[bool]) -> str:
    """How a skill collapses over the checkpoints of an arm, from `below_base`; empty if it does not.

    ``persistent``: below base at two or more consecutive checkpoints. ``at the end``: at the last checkpoint alone, so that it is
    not known whether it stays. ``transient``: at single checkpoints from which it recovers.

    Example:
        >>> collapse_kind([False, True, True, False]), collapse_kind([True, False]), collapse_kind([False, True])
        ('persistent', 'transient', 'at the end')
    """
    flags = list(map(bool, below))
    if any(one and two for one, two in pairwise(flags)):
        return PERSISTENT
    if flags and flags[-1]:
        return AT_THE_END
    return TRANSIENT if any(flags) else ""


def relative_gain(base: Float[ndarray, "*lead skill"], tuned: Float[ndarray, "*lead skill"]) -> Values:
    """Δ of a group of skills: the mean over them of (tuned − base) / base, from raw scores (arXiv 2507.00432)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((tuned - base) / base).mean(axis=-1)


def transferability(
    base: Float[ndarray, "*lead skill"],
    tuned: Float[ndarray, "*lead skill"],
    trained: Sequence[int],
    other: Sequence[int],
) -> Values:
    """Transferability index TI = 100 Δ_other / Δ_trained, from raw scores (arXiv 2507.00432).

    Example:
        >>> float(transferability(np.array([0.5, 0.5]), np.array([0.75, 0.6]), [0], [1])).__round__(6)
        40.0
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * (
            relative_gain(base[..., list(other)], tuned[..., list(other)])
            / relative_gain(base[..., list(trained)], tuned[..., list(trained)])
        )


MEASURES: Mapping[str, Callable[..., Values]] = {
    "drift_l1": lambda profiles, column: drift(profiles, column, 1),
    "drift_l2": lambda profiles, column: drift(profiles, column, 2),
    "step_l1": lambda profiles, column: step_drift(profiles, column, 1),
    "step_l2": lambda profiles, column: step_drift(profiles, column, 2),
    "lost": lambda profiles, column: loss(gains(profiles, column)),
    "imbalance": lambda profiles, column: imbalance(gains(profiles, column)),
    "gain_range": lambda profiles, column: gain_range(gains(profiles, column)),
    "jaggedness": lambda profiles, column: jaggedness(gains(profiles, column)),
}
"""The numbers of one checkpoint that are sublinear in the profiles."""
