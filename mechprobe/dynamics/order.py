"""What moved first: the step at which half of a change is reached, and the lag between two quantities.

No paper that we know gives these formulas; all are ours. A quantity has the value v_0 at base and v_1 ... v_C at the checkpoints of one
arm. With s the sign of v_C − v_0,

    D_c = s (v_c − (v_0 + v_C) / 2)

is negative before half of the final change is reached, and positive after it. D is linear in the values, so that its bootstrap standard
error is one of a plain contrast, and no draw has to find a crossing in its own noise.

* **Step of half the change.** The length of the axis on which D < 0, with D linear between checkpoints on `log_axis`. For a course that
  passes half once it is that crossing. For a noisy one, stretches wrongly below half and wrongly above it cancel.
* **Interval.** Its lower end is the last checkpoint of the first run of checkpoints that are clearly below half (D < 0, one-sided t
  test at α/2 each), its upper end the first checkpoint of the last run that is clearly above. The tests go from the ends inwards and
  stop at the first one that fails, so that their number costs nothing. If half is passed once, the interval holds that step with
  probability 1 − α, whatever the course does between checkpoints. It is never narrower than the gap between two checkpoints.
* **Lag.** Difference of the two steps. Every bootstrap draw gives the smallest and largest lag that its checkpoints allow; the ends are
  the 2.5 % quantile of the smallest and the 97.5 % quantile of the largest.
* **Order.** The first quantity is shown to come first if it is clearly above half at a checkpoint at which, or after which, the second
  is clearly below. p is four times the larger of the two p-values (two tests, two directions), at the best checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.typing import ArrayLike

from mechprobe.errors import InputError
from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.statistics import Interval, holm

ALPHA = 0.05
NO_CHANGE, ONE_CHECKPOINT = "its change is not clear of 0", "there is one checkpoint"
_NAN = float("nan")


def log_axis(step: ArrayLike | float, first: float | int) -> Float[ndarray, "*step"]:
    """Place of a step on an axis that is linear from base at 0 to the ``first`` checkpoint, at 1, and logarithmic after it.

    Example:
        >>> log_axis([0, 5, 10, 20], first=10).round(2).tolist()
        [0.0, 0.5, 1.0, 1.69]
    """
    share = np.asarray(step, dtype=np.float64) / first
    return np.where(share > 1, 1 + np.log(np.maximum(share, 1)), share)


def steps_at(place: ArrayLike | float, first: float | int) -> Float[ndarray, "*place"]:
    """The inverse of `log_axis`."""
    place = np.asarray(place, dtype=np.float64)
    return np.asarray(first * np.where(place > 1, np.exp(np.maximum(place, 1) - 1), place))


@dataclass(frozen=True)
class Course:
    """A quantity at base and at the checkpoints of one arm.

    Attributes:
        name: Its name.
        steps: Step of each checkpoint, rising from above 0.
        values: Its values, base first.
        draws: The same in each bootstrap draw; None for a quantity that is known exactly. Draws of several courses are joint: row i of
            each comes from the same samples, if they share samples.
        n: Independent units that are resampled; 0 for an exact quantity.
    """

    name: str
    steps: Float[ndarray, " checkpoint"]
    values: Float[ndarray, " column"]
    draws: Float[ndarray, "draw column"] | None = None
    n: int = 0

    def __post_init__(self) -> None:
        steps, values = np.asarray(self.steps, dtype=np.float64), np.asarray(self.values, dtype=np.float64)
        draws = None if self.draws is None else np.asarray(self.draws, dtype=np.float64)
        if len(values) != len(steps) + 1 or (draws is not None and draws.shape[1:] != values.shape):
            raise InputError(f"{self.name}: give one value for base and one per step, and the same in every draw.")
        if not len(steps) or steps[0] <= 0 or (np.diff(steps) <= 0).any() or not np.isfinite(values).all():
            raise InputError(f"{self.name}: steps must rise from above 0, and values must be finite.")
        if draws is not None and (len(draws) < 2 or self.n < 2):
            raise InputError(f"{self.name}: there are {len(draws)} draws of {self.n} units; two of each are needed.")
        for key, value in (("steps", steps), ("values", values), ("draws", draws)):
            object.__setattr__(self, key, value)

    @cached_property
    def columns(self) -> Float[ndarray, " column"]:
        """Steps, with base at 0."""
        return np.array([0.0, *self.steps])

    def contrast(self, values: Float[ndarray, "*draw column"]) -> Float[ndarray, "*draw column"]:
        """D of some values, with the sign of the change of the course."""
        sign = 1.0 if self.values[-1] >= self.values[0] else -1.0
        return sign * (values - (values[..., :1] + values[..., -1:]) / 2)

    @cached_property
    def p_below(self) -> Float[ndarray, " column"]:
        """One-sided p-value of D < 0 at every column."""
        return self._p(-self.contrast(self.values))

    @cached_property
    def p_above(self) -> Float[ndarray, " column"]:
        """One-sided p-value of D > 0 at every column."""
        return self._p(self.contrast(self.values))

    def _p(self, contrast: Float[ndarray, " column"]) -> Float[ndarray, " column"]:
        from scipy.special import stdtr

        if self.draws is None:
            return np.where(contrast > 0, 0.0, 1.0)
        error = np.nanstd(self.contrast(self.draws), axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(error > 0, contrast / error, np.sign(contrast) * np.inf)
        return np.where(contrast == 0, 1.0, stdtr(self.n - 1, -z))

    @property
    def untold(self) -> str:
        """Why the course has no step of half its change; empty if it has one."""
        if len(self.steps) < 2:
            return ONE_CHECKPOINT
        return "" if self.p_below[0] <= ALPHA / 2 else NO_CHANGE

    @property
    def change(self) -> Interval:
        """Last value − value of base, with the normal interval of its bootstrap error; an exact change has no width."""
        value = float(self.values[-1] - self.values[0])
        if self.draws is None:
            return Interval(value, value, value, 0)
        from scipy.special import stdtrit

        half = float(stdtrit(self.n - 1, 0.975) * np.nanstd(self.draws[:, -1] - self.draws[:, 0], ddof=1))
        return Interval(value, value - half, value + half, self.n)


class HalfChange(Result):
    """The step at which half of a quantity's change is reached.

    Attributes:
        change: Last value − value of base.
        step: The step with its interval, whose ends are checkpoints; NaN where ``untold`` says why there is none.
        crossings: How often the values pass half of the change.
        untold: Why no step can be told; empty if one can.
    """

    name: str
    change: IntervalNumbers
    step: IntervalNumbers
    crossings: int
    untold: str = ""


class LeadLag(Result):
    """Two quantities of one arm.

    Attributes:
        lag: Step of half the change of the second − that of the first.
        p: p-value of the order, see `mechprobe.dynamics.order`; ``p_holm`` is adjusted over all pairs of the arm.
        first_moved: The one that is shown to come first; empty where the order cannot be told.
        untold: Why there is no lag; empty if there is one.
    """

    first: str
    second: str
    lag: IntervalNumbers
    p: Number
    p_holm: Number
    first_moved: str
    untold: str = ""


class Order(Result):
    """The steps of half of the change, in order, and every two of them."""

    halves: tuple[HalfChange, ...]
    pairs: tuple[LeadLag, ...]

    def before(self, name: str) -> list[str]:
        """The quantities that ``name`` is shown to precede."""
        return [{pair.first, pair.second}.difference({name}).pop() for pair in self.pairs if pair.first_moved == name]


def half_change(course: Course, *, first: float | int | None = None) -> HalfChange:
    """The step at which half of the change is reached, with its interval.

    Args:
        course: The quantity.
        first: First step of the axis; that of the course if None.
    """
    contrast = course.contrast(course.values)
    signs = contrast[contrast != 0] > 0
    crossings = int((signs[1:] != signs[:-1]).sum())
    if course.untold:
        nothing = Interval(_NAN, _NAN, _NAN, course.n)
        return HalfChange(
            name=course.name, change=course.change, step=nothing, crossings=crossings, untold=course.untold
        )
    low, high = _ends(course.p_below <= ALPHA / 2, course.p_above <= ALPHA / 2)
    axis = first or float(course.steps[0])
    step = float(steps_at(_time_below(contrast, log_axis(course.columns, axis)), axis))
    ends = float(course.columns[low]), float(course.columns[high])
    interval = Interval(step, min(step, ends[0]), max(step, ends[1]), course.n)
    return HalfChange(name=course.name, change=course.change, step=interval, crossings=crossings)


def lead_lag(one: Course, two: Course, *, first: float | int | None = None) -> LeadLag:
    """The lag of ``two`` behind ``one``, and which is shown to come first; ``p_holm`` is ``p``."""
    halves = half_change(one, first=first), half_change(two, first=first)
    untold = next((f"{half.name}: {half.untold}" for half in halves if half.untold), "")
    if untold:
        nothing = Interval(_NAN, _NAN, _NAN, 0)
        return LeadLag(first=one.name, second=two.name, lag=nothing, p=_NAN, p_holm=_NAN, first_moved="", untold=untold)
    forth, back = _p_order(one, two), _p_order(two, one)
    p = min(1.0, 4 * min(forth, back))
    moved = (one.name if forth < back else two.name) if p <= ALPHA else ""
    return LeadLag(first=one.name, second=two.name, lag=_lag(one, two, *halves), p=p, p_holm=p, first_moved=moved)


def moved_first(courses: Sequence[Course]) -> Order:
    """Half of the change of every quantity in order of its step, and every pair with Holm's adjustment over all.

    Args:
        courses: Quantities of one arm with different names.
    """
    first = min((float(course.steps[0]) for course in courses), default=1.0)
    halves = [half_change(course, first=first) for course in courses]
    order = sorted(range(len(courses)), key=lambda place: (bool(halves[place].untold), halves[place].step.value))
    ordered = [courses[place] for place in order]
    pairs = [lead_lag(one, two, first=first) for one, two in combinations(ordered, 2)]
    told = [pair for pair in pairs if not pair.untold]
    adjusted = dict(zip(map(id, told), holm([pair.p for pair in told]), strict=True)) if told else {}
    return Order(
        halves=tuple(halves[place] for place in order),
        pairs=tuple(_adjusted(pair, adjusted.get(id(pair))) for pair in pairs),
    )


def _adjusted(pair: LeadLag, p_holm: float | None) -> LeadLag:
    if p_holm is None:
        return pair
    return pair.model_copy(update={"p_holm": float(p_holm), "first_moved": pair.first_moved if p_holm <= ALPHA else ""})


class _Ends(NamedTuple):
    low: Int[ndarray, "*draw"]
    high: Int[ndarray, "*draw"]


def _ends(below: Bool[ndarray, "*draw column"], above: Bool[ndarray, "*draw column"]) -> _Ends:
    """Last column of the first run that is ``below``, and first column of the last run that is ``above``.

    Without such a run they are base and the last checkpoint.
    """
    last = below.shape[-1] - 1
    low = np.where(below.all(axis=-1), last, (~below).argmax(axis=-1) - 1)
    high = np.where(above.all(axis=-1), 0, last + 1 - (~above)[..., ::-1].argmax(axis=-1))
    return _Ends(np.maximum(low, 0), np.minimum(high, last))


def _time_below(contrast: Float[ndarray, " column"], axis: Float[ndarray, " column"]) -> float:
    """Length of the axis on which the contrast, linear between its columns, is below 0."""
    one, two, gap = contrast[:-1], contrast[1:], np.diff(axis)
    low, high = np.minimum(one, two), np.maximum(one, two)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(high <= 0, 1.0, np.where(low >= 0, 0.0, -low / (high - low)))
    return float((gap * part).sum())


def _lag(one: Course, two: Course, half_one: HalfChange, half_two: HalfChange) -> Interval:
    ends = [_drawn_ends(course) for course in (one, two)]
    length = min(len(low) for low, _ in ends if len(low) > 1) if any(len(low) > 1 for low, _ in ends) else 1
    (low_one, high_one), (low_two, high_two) = (
        tuple(np.broadcast_to(end if len(end) == 1 else end[:length], length) for end in pair) for pair in ends
    )
    value = half_two.step.value - half_one.step.value
    low, high = np.quantile(low_two - high_one, ALPHA / 2), np.quantile(high_two - low_one, 1 - ALPHA / 2)
    n = min((course.n for course in (one, two) if course.n), default=0)
    return Interval(value, min(value, float(low)), max(value, float(high)), n)


def _drawn_ends(course: Course) -> tuple[Float[ndarray, " draw"], Float[ndarray, " draw"]]:
    """Steps between which half of the change is passed, in every draw."""
    values = course.values[None] if course.draws is None else course.draws[np.isfinite(course.draws).all(axis=1)]
    contrast = course.contrast(values)
    low, high = _ends(contrast < 0, contrast > 0)
    return course.columns[low], course.columns[high]


def _p_order(one: Course, two: Course) -> float:
    """Largest of two p-values, at the best checkpoints: ``one`` is above half, and ``two`` is below half there or later."""
    above = np.maximum.accumulate(one.p_above[::-1])[::-1]
    below = np.maximum.accumulate(two.p_below)
    best = 1.0
    for column, step in enumerate(one.columns):
        later = np.flatnonzero(two.columns >= step)
        if len(later):
            best = min(best, max(float(above[column]), float(below[later[0]])))
    return best
