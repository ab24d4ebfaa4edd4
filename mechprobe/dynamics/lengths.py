"""Response length beside the score: surge, contraction and late rise (arXiv 2604.06628 describes them; the definitions are ours)."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike

from mechprobe.dynamics.result import LengthCourse
from mechprobe.errors import InputError

RISE = 1.1
"""Rise of the mean length that counts where no lengths of items are known."""


def length_course(
    steps: Iterable[float | int],
    lengths: Sequence[Any] | ArrayLike,
    scores: Sequence[Any] | ArrayLike,
    base_score: float | int,
    *,
    alpha: float = 0.05,
) -> LengthCourse:
    """How response length moves beside the score.

    Args:
        steps: Step of each checkpoint.
        lengths: Mean lengths ``[1 + checkpoint]``, base first, or lengths of the items' responses ``[1 + checkpoint, item]``.
        scores: Scores of the checkpoints.
        base_score: Score of base.
        alpha: Level of the test of a late rise.

    Raises:
        InputError: The lengths do not fit the steps, or are not positive.
    """
    each, steps = np.asarray(lengths, dtype=float), tuple(map(float, steps))
    curve = np.array([base_score, *np.asarray(scores, dtype=float)])
    if len(each) != len(steps) + 1 or len(curve) != len(steps) + 1:
        raise InputError(
            f"There are {len(each)} lengths, {len(curve) - 1} scores and {len(steps)} steps; give lengths of base and of every step."
        )
    means = each if each.ndim == 1 else each.mean(axis=1)
    if not (np.isfinite(each).all() and (means > 0).all()):
        raise InputError("Lengths must be numbers above 0 on average; leave that checkpoint out.")
    surge = int(means[1:].argmax())
    lowest = surge + int(means[1 + surge :].argmin())
    rise = float(means[-1] / means[1 + lowest])
    p = _rise_p(each, surge, lowest) if each.ndim > 1 else float("nan")
    return LengthCourse(
        lengths=tuple(means.tolist()),
        surge_ratio=float(means[1 + surge] / means[0]),
        surge_step=steps[surge],
        contraction_ratio=float(means[-1] / means[1 + surge]),
        rise_ratio=rise,
        late_rerise=bool(rise >= RISE if np.isnan(p) else p <= alpha),
        rerise_p=p,
        lag=steps[int(curve[1:].argmin())] - steps[surge],
        spearman=rank_correlation(means, curve),
    )


def _rise_p(each: ndarray, surge: int, lowest: int) -> float:
    """One-sided paired t test of the last length against the lowest from the surge on, times the number that it was chosen from."""
    from scipy.special import stdtr

    last = len(each) - 2
    change = each[-1] - each[1 + lowest]
    error = change.std(ddof=1) / np.sqrt(len(change))
    if lowest == last or error == 0:
        return 1.0
    return float(min(1.0, (last - surge) * stdtr(len(change) - 1, -change.mean() / error)))


def rank_correlation(first: ndarray, second: ndarray) -> float:
    """Spearman's correlation; NaN where one is constant."""
    from scipy.stats import rankdata

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
