"""The class of a curve, from tests alone. The classes are those of paper C (arXiv 2604.06628); the tests are ours."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.dip_statistic import Noise
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
MEANING: Mapping[str, str] = {
    "no_change": "neither a dip nor a gain is shown",
    "monotone_gain": "a gain without a dip",
    "dip_recover_exceed": "a dip; the end is above base",
    "dip_recover_to_base": "a dip; the end is not shown to differ from base",
    "dip_partial": "a dip; the end is above the middle between trough and base, and below base, or is not shown to be either",
    "dip_no_recovery": "a dip; the end is below base, and not above the middle between trough and base",
    "overfit_decline": "a gain, and a decline to the end",
    "unresolved": "a decline whose lowest score is the last: the training may be too short to recover",
}


class CurveTests(Result):
    """What the class of a curve rests on.

    z-values are one-sided normal tests. The *end* is the longest run of last checkpoints, after the trough if there is a dip, whose
    scores a χ² test of equality does not tell apart; its level is their mean, weighted by precision.

    Attributes:
        dip_p: p-value of a stretch below base (`mechprobe.dynamics.dip_test`).
        gain_p: p-value of a stretch above base: the same test of the curve turned upside down.
        late_p: p-value of the decline from the highest score to the last.
        early_gain_p: p-value of the highest score before the trough against base, Bonferroni-adjusted; 1 without one.
        end_z: End against base; above 0 it is higher.
        middle_z: End against the middle between trough and base.
        trough_last: Whether the lowest score is the last.
        end_low: Whether the end reaches back to the trough, so that it is not shown to differ from it.
    """

    dip_p: Number
    gain_p: Number
    late_p: Number
    early_gain_p: Number
    end_z: Number
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
    if tests.end_z > limit:
        return "dip_recover_exceed"
    if tests.end_z >= -limit:
        return "dip_recover_to_base" if tests.middle_z > 0 else "dip_partial"
    return "dip_partial" if tests.middle_z > limit else "dip_no_recovery"


def critical(alpha: float) -> float:
    """The normal quantile of a one-sided test."""
    from scipy.special import ndtri

    return float(ndtri(1 - alpha))


def shape(curve: Float[ndarray, " score"], noise: Noise, alpha: float) -> dict[str, float | bool]:
    """The fields of `CurveTests` that need no simulation."""
    from scipy.special import ndtr

    base, scores = float(curve[0]), curve[1:]
    errors = np.array(noise.checkpoints)
    trough, last = int(scores.argmin()), len(scores) - 1
    start = _end(scores, errors, alpha)
    end = slice(min(max(start, trough + 1), last), None)
    weights = errors[end] ** -2.0
    level, error = float(weights @ scores[end] / weights.sum()), float(weights.sum() ** -0.5)
    middle = (base + float(scores[trough])) / 2
    middle_error = float(np.sqrt(error**2 + (noise.base**2 + errors[trough] ** 2) / 4))
    early = 1.0
    if trough:
        highest = float(((scores[:trough] - base) / noise.differences[:trough]).max())
        early = min(1.0, trough * float(ndtr(-highest)))
    return {
        "early_gain_p": early,
        "end_z": (level - base) / float(np.hypot(error, noise.base)),
        "middle_z": (level - middle) / middle_error,
        "trough_last": trough == last,
        "end_low": start <= trough,
    }


def _end(scores: Float[ndarray, " checkpoint"], errors: Float[ndarray, " checkpoint"], alpha: float) -> int:
    """The first checkpoint of the longest run of last ones that a χ² test of equality does not tell apart."""
    from scipy.special import chdtrc

    start = len(scores) - 1
    while start:
        weights = errors[start - 1 :] ** -2.0
        run = scores[start - 1 :]
        spread = float(weights @ (run - weights @ run / weights.sum()) ** 2)
        if chdtrc(len(run) - 1, spread) <= alpha:
            break
        start -= 1
    return start


def adjusted(tests: list[CurveTests]) -> list[CurveTests]:
    """The tests of several curves with Holm's adjustment of the p-values of dips, of gains and of late declines, each over all curves."""
    columns = {name: holm([getattr(each, name) for each in tests]) for name in ("dip_p", "gain_p", "late_p")}
    return [each.model_copy(update={name: ps[i] for name, ps in columns.items()}) for i, each in enumerate(tests)]
