"""The class of a curve, from tests alone. The classes are those of paper C (arXiv 2604.06628); the tests are ours."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.dip_statistic import Noise, recovery_statistic
from mechprobe.results import Number, Result
from mechprobe.statistics import holm

Label = Literal[
    "no_change",
    "monotone_gain",
    "dip_recover_exceed",
    "dip_recover_to_base",
    "dip_partial",
    "dip_no_recovery",
    "overfit_decline",
    "unresolved",
]
LABELS: tuple[str, ...] = get_args(Label)
POOLED = 0.25
"""Level of the tests of equality before scores are averaged, as Bancroft (1964) recommends for pooling."""
MEANING: Mapping[str, str] = {
    "no_change": "neither a dip nor a gain is shown",
    "monotone_gain": "a gain without a dip",
    "dip_recover_exceed": "a dip; the end is above base",
    "dip_recover_to_base": "a dip; the end is likelier at base than below, and not shown to be above",
    "dip_partial": "a dip; the end is likelier below base, and above the middle between trough and base",
    "dip_no_recovery": "a dip; the end is likelier below base, and not shown to be above that middle",
    "overfit_decline": "a gain, and a decline to the end",
    "unresolved": "a decline whose lowest score is the last: the training may be too short to recover",
}


class CurveTests(Result):
    """What the class of a curve rests on.

    z-values are one-sided normal tests. The *end* is the longest run of last checkpoints after the trough whose scores a χ² test of
    equality does not tell apart (at level `POOLED`); its level is their mean, weighted by precision.

    Attributes:
        dip_p: p-value of a stretch below base (`mechprobe.dynamics.dip_test`).
        gain_p: p-value of a stretch above base: the same test of the curve turned upside down.
        late_p: p-value of the decline from the highest score to the last.
        early_gain_p: p-value of the highest score before the trough against base, Bonferroni-adjusted; 1 without one.
        above_z: End − base.
        recovery: Logarithm of a likelihood ratio: above 0 the last scores are likelier at base or above than below
            (`mechprobe.dynamics.dip_statistic.recovery_statistic`).
        middle_z: End against the middle between trough and base.
        trough_last: Whether the lowest score is the last.
        end_low: Whether the end reaches back to the trough, so that it is not shown to differ from it.
    """

    dip_p: Number
    gain_p: Number
    late_p: Number
    early_gain_p: Number
    above_z: Number
    recovery: Number
    middle_z: Number
    trough_last: bool
    end_low: bool


def classify(tests: CurveTests, alpha: float) -> Label:
    """The class of a curve at level ``alpha``."""
    if tests.dip_p <= alpha:
        return _dip(tests, alpha)
    if tests.gain_p <= alpha:
        return "overfit_decline" if tests.late_p <= alpha else "monotone_gain"
    return "no_change"


def _dip(tests: CurveTests, alpha: float) -> Label:
    limit = critical(alpha)
    if (tests.trough_last or tests.end_low) and tests.early_gain_p <= alpha:
        return "overfit_decline"
    if tests.trough_last:
        return "unresolved"
    if tests.above_z > limit:
        return "dip_recover_exceed"
    if tests.recovery > 0:
        return "dip_recover_to_base"
    return "dip_partial" if tests.middle_z > limit else "dip_no_recovery"


def critical(alpha: float) -> float:
    """The normal quantile of a one-sided test."""
    from scipy.special import ndtri

    return float(ndtri(1 - alpha))


def shape(curve: Float[ndarray, " score"], noise: Noise) -> dict[str, float | bool]:
    """The fields of `CurveTests` that need no simulation."""
    base, scores, errors = float(curve[0]), curve[1:], np.array(noise.checkpoints)
    trough, last = int(scores.argmin()), len(scores) - 1
    run = _equal_run(scores[::-1], errors[::-1])
    end, end_error = _level(scores[::-1], errors[::-1], max(1, min(run, last - trough)))
    middle = (base + float(scores[trough])) / 2
    middle_error = float(np.sqrt(end_error**2 + (noise.base**2 + errors[trough] ** 2) / 4))
    return {
        "early_gain_p": _early_gain(curve[: trough + 1], noise),
        "above_z": (end - base) / float(np.hypot(end_error, noise.base)),
        "recovery": float(recovery_statistic(curve[None], noise)[0]),
        "middle_z": (end - middle) / middle_error,
        "trough_last": trough == last,
        "end_low": run >= last - trough + 1,
    }


def _early_gain(curve: Float[ndarray, " score"], noise: Noise) -> float:
    """Bonferroni-adjusted p-value of the highest of the first scores against base; 1 without one."""
    from scipy.special import ndtr

    n = len(curve) - 1
    return min(1.0, n * float(ndtr(-((curve[1:] - curve[0]) / noise.differences[:n]).max()))) if n else 1.0


def _equal_run(scores: Float[ndarray, " score"], errors: Float[ndarray, " score"]) -> int:
    """Length of the longest run of first scores that a χ² test of equality does not tell apart."""
    from scipy.special import chdtrc

    length = 1
    while length < len(scores):
        level, _ = _level(scores, errors, length + 1)
        spread = float((((scores[: length + 1] - level) / errors[: length + 1]) ** 2).sum())
        if chdtrc(length, spread) <= POOLED:
            break
        length += 1
    return length


def _level(scores: Float[ndarray, " score"], errors: Float[ndarray, " score"], length: int) -> tuple[float, float]:
    """Mean of the first scores, weighted by precision, and its standard error."""
    weights = errors[:length] ** -2.0
    return float(weights @ scores[:length] / weights.sum()), float(weights.sum() ** -0.5)


def adjusted(tests: list[CurveTests]) -> list[CurveTests]:
    """The tests of several curves with Holm's adjustment of the p-values of dips, of gains and of late declines, each over all curves."""
    columns = {name: holm([getattr(each, name) for each in tests]) for name in ("dip_p", "gain_p", "late_p")}
    return [each.model_copy(update={name: ps[i] for name, ps in columns.items()}) for i, each in enumerate(tests)]
