"""How the strength of a feature changes over the checkpoints of one arm, as pure functions of decoder norms.

Strength is the L1 norm of a feature's decoder in the models' own units, with one value per model of a dictionary over base
and checkpoints. arXiv 2509.17196 uses the decoder norm per snapshot; the definitions of onset, half-rise, half-life and
persistence are specific to mechprobe. Column 0 is base, the others are checkpoints in order of training.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.emergence.config import TrajectoryThresholds

EMERGING, FADING, TRANSIENT, DIPPING, STEADY, DEAD = "emerging", "fading", "transient", "dipping", "steady", "dead"
KINDS = (EMERGING, FADING, TRANSIENT, DIPPING, STEADY, DEAD)
NO_ONSET = -1


def shares(norms: Float[ndarray, "d_sae column"]) -> Float[ndarray, "d_sae column"]:
    """Strength as a share of its sum over base and checkpoints. Rows sum to 1, and are NaN if every norm is 0.

    Example:
        >>> shares(np.array([[1.0, 1.0, 2.0]]))
        array([[0.25, 0.25, 0.5 ]])
    """
    norms = np.asarray(norms, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return norms / norms.sum(axis=1, keepdims=True)


def kinds(norms: Float[ndarray, "d_sae column"], dead: Bool[ndarray, " d_sae"], min_change: float) -> list[str]:
    """The kind of each feature, by its changes as shares of its largest norm.

    A feature is ``emerging`` if its last norm is above base's by ``min_change`` or more, and ``fading`` if it is below by as
    much. Otherwise it is ``transient`` if some checkpoint is above both ends by as much, or ``dipping`` if one is below both
    ends. All others are ``steady``. ``dead`` features have no course.

    Example:
        >>> kinds(np.array([[0.1, 0.5, 1.0], [1.0, 1.0, 0.9], [0.2, 1.0, 0.2]]), np.zeros(3, bool), 0.2)
        ['emerging', 'steady', 'transient']
    """
    norms = np.asarray(norms, dtype=np.float64)
    need = min_change * norms.max(axis=1)
    base, last = norms[:, 0], norms[:, -1]
    rules = {
        DEAD: dead | (norms.max(axis=1) == 0),
        EMERGING: last - base >= need,
        FADING: base - last >= need,
        TRANSIENT: norms.max(axis=1) - np.maximum(base, last) >= need,
        DIPPING: np.minimum(base, last) - norms.min(axis=1) >= need,
    }
    return [str(name) for name in np.select(list(rules.values()), list(rules), default=STEADY)]


@dataclass(frozen=True)
class Trajectories:
    """The course of each feature; NaN or `NO_ONSET` for features without one.

    Attributes:
        kind: One of `KINDS`.
        onset: Column of the first checkpoint at which the change has begun.
        half_rise: Progress (0 = base, 1 = end of training) at which half of the change is reached.
        half_life: Progress from the peak of the change until half of it is lost; NaN if it is not lost before the end.
        persistence: Share of the checkpoints from onset on at which the change is at ``onset_share`` or above.
        peak: Column of the largest change.
    """

    kind: list[str]
    onset: Int[ndarray, " d_sae"]
    half_rise: Float[ndarray, " d_sae"]
    half_life: Float[ndarray, " d_sae"]
    persistence: Float[ndarray, " d_sae"]
    peak: Int[ndarray, " d_sae"]


def trajectories(
    norms: Float[ndarray, "d_sae column"],
    dead: Bool[ndarray, " d_sae"],
    progress: Float[ndarray, " column"],
    thresholds: TrajectoryThresholds,
) -> Trajectories:
    """`Trajectories` of every feature.

    Let r_c be the change from base at checkpoint c, in the direction of the feature's change, and R its value at the end (at
    the peak, for transient and dipping features). Onset is the first c with r_c ≥ ``onset_share`` · R both at c and at the
    next checkpoint, so that a single noisy checkpoint is not an onset.

    Args:
        norms: Decoder norms, base first.
        dead: Features that never fire.
        progress: Share of training done at each column, rising from 0 at base.
        thresholds: When a feature counts as changed, and when the change has begun.
    """
    norms = np.asarray(norms, dtype=np.float64)
    kind = kinds(norms, dead, thresholds.min_change)
    onset, peak = np.full(len(norms), NO_ONSET), np.full(len(norms), NO_ONSET)
    half_rise, half_life, persistence = np.full((3, len(norms)), np.nan)
    for row, name in enumerate(kind):
        if name in (STEADY, DEAD):
            continue
        change = (norms[row] - norms[row, 0]) * (1.0 if name in (EMERGING, TRANSIENT) else -1.0)
        top = int(change.argmax())
        reference = change[-1] if name in (EMERGING, FADING) else change[top]
        first = first_sustained(change, thresholds.onset_share * reference)
        onset[row], peak[row] = first, top
        half_rise[row] = crossing(change, progress, 0.5 * reference)
        half_life[row] = decay(change, progress, top)
        persistence[row] = float((change[first:] >= thresholds.onset_share * reference).mean())
    return Trajectories(kind, onset, half_rise, half_life, persistence, peak)


def first_sustained(change: Float[ndarray, " column"], level: float) -> int:
    """First column at which ``change`` is at ``level`` or above, there and at the next column, if there is one.

    If no two neighbors are, the column of the highest change: a peak of a single checkpoint.

    Example:
        >>> first_sustained(np.array([0.0, 0.5, 0.0, 0.4, 0.9]), 0.3)
        3
    """
    above = change >= level
    follows = np.append(above[1:], True)
    found = np.flatnonzero(above & follows)
    return int(found[0]) if len(found) else int(change.argmax())


def crossing(change: Float[ndarray, " column"], progress: Float[ndarray, " column"], level: float) -> float:
    """Progress at which ``change`` reaches ``level``, see `first_sustained`; linear between the checkpoints."""
    after = first_sustained(change, level)
    if after == 0:
        return float(progress[0])
    low, high = change[after - 1], change[after]
    part = float(np.clip((level - low) / (high - low), 0, 1)) if high > low else 1.0
    return float(progress[after - 1] + part * (progress[after] - progress[after - 1]))


def decay(change: Float[ndarray, " column"], progress: Float[ndarray, " column"], peak: int) -> float:
    """Progress from the peak until ``change`` falls below half of it, linear between checkpoints; NaN if it never does."""
    level = 0.5 * change[peak]
    below = np.flatnonzero(change[peak:] < level)
    if not len(below):
        return float("nan")
    after = peak + int(below[0])
    part = (change[after - 1] - level) / (change[after - 1] - change[after])
    return float(progress[after - 1] + part * (progress[after] - progress[after - 1]) - progress[peak])
