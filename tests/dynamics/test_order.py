"""The step of half of a change and lags: by hand, and their coverage under simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy import ndarray

from mechprobe.dynamics.order import (
    ALPHA,
    NO_CHANGE,
    ONE_CHECKPOINT,
    Course,
    half_change,
    lead_lag,
    log_axis,
    moved_first,
    steps_at,
)
from mechprobe.errors import InputError

STEPS = np.array([10.0, 20, 40, 80, 160, 320, 640])


@given(st.floats(0, 1e6), st.floats(0.5, 1e3))
def test_the_axis_has_an_inverse_and_rises(step: float, first: float) -> None:
    place = log_axis(step, first)
    assert float(steps_at(place, first)) == pytest.approx(step, rel=1e-9, abs=1e-12)
    assert float(log_axis(step + first, first)) > float(place)


def test_half_of_an_exact_change_by_hand() -> None:
    linear = half_change(Course("a", np.array([10.0, 20]), np.array([0.0, 4, 5])))
    assert linear.step[:3] == pytest.approx((6.25, 0, 10))  # the axis is linear up to the first checkpoint
    late = half_change(Course("b", np.array([10.0, 20, 40]), np.array([0.0, 0, 0, 8])))
    assert late.step[:3] == pytest.approx((np.sqrt(20 * 40), 20, 40))  # logarithmic after it
    falling = half_change(Course("c", np.array([10.0, 20, 40]), np.array([1.0, 1, 0, 0])))
    assert falling.step[:3] == pytest.approx((np.sqrt(200), 10, 20))
    assert falling.change.value == -1
    assert (linear.crossings, late.crossings, falling.crossings) == (1, 1, 1)


def test_what_cannot_be_told_is_said() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(500, 4))
    assert half_change(Course("a", np.array([10.0]), np.array([0.0, 1]))).untold == ONE_CHECKPOINT
    assert half_change(Course("b", np.array([10.0, 20]), np.array([1.0, 2, 1]))).untold == NO_CHANGE
    weak = half_change(Course("c", STEPS[:3], np.array([0.0, 0.2, 0.9, 1]), noise, 50))
    assert weak.untold == NO_CHANGE
    assert np.isnan(weak.step.value)
    pair = lead_lag(Course("c", STEPS[:3], np.array([0.0, 0, 0, 1]), noise, 50), Course("d", STEPS[:3], np.arange(4.0)))
    assert pair.untold == f"c: {NO_CHANGE}"
    assert pair.first_moved == ""
    found = moved_first([Course("c", STEPS[:3], np.zeros(4)), Course("d", STEPS[:3], np.arange(4.0))])
    assert [half.name for half in found.halves] == ["d", "c"]


def test_a_course_that_passes_half_again_has_a_wide_interval() -> None:
    values = np.array([0.0, 0.9, 0.1, 1, 1])
    found = half_change(
        Course("a", STEPS[:4], values, values + np.random.default_rng(0).normal(0, 0.01, (500, 5)), 100)
    )
    assert found.crossings == 3
    assert found.step[1:3] == (0, 40)


def test_exact_quantities_are_ordered_by_the_checkpoints_between_them() -> None:
    early, late = (
        Course("a", STEPS[:4], np.array([0.0, 1, 1, 1, 1])),
        Course("b", STEPS[:4], np.array([0.0, 0, 0, 0, 1])),
    )
    found = lead_lag(early, late)
    assert (found.first_moved, found.p) == ("a", 0)
    assert found.lag[1:3] == (30, 80)
    again = lead_lag(late, early)
    assert again.first_moved == "a"
    assert again.lag.value == -found.lag.value
    same = lead_lag(early, Course("c", STEPS[:4], np.array([0.0, 0.6, 1, 1, 1])))
    assert (same.first_moved, same.p) == ("", 1)  # both pass half before the first checkpoint
    order = moved_first([late, early])
    assert order.before("a") == ["b"]
    assert order.before("b") == []


def test_an_order_that_holm_does_not_keep_is_not_told() -> None:
    values, error = np.array([0.0, 1.7, 2, 2]), 0.2
    noise = error * np.random.default_rng(1).normal(size=(2, 2000, 4))
    late = Course("late", STEPS[:3], np.array([0.0, 0, 0.2, 2]), np.array([0.0, 0, 0.2, 2]) + noise[0], 1000)
    early = Course("early", STEPS[:3], values, values + noise[1], 1000)
    alone = moved_first([early, late])
    assert 0 < alone.pairs[0].p < ALPHA
    assert alone.pairs[0].first_moved == "early"
    ties = [Course(f"tie {number}", STEPS[:3], values, values + noise[1], 1000) for number in range(12)]
    crowd = moved_first([early, late, *ties])
    pair = next(pair for pair in crowd.pairs if {pair.first, pair.second} == {"early", "late"})
    assert pair.p == alone.pairs[0].p
    assert pair.p_holm > pair.p
    assert (pair.first_moved == "early") == (pair.p_holm <= ALPHA)


def test_courses_that_cannot_be_are_refused() -> None:
    for steps, values, draws, n in (
        ([10, 5], [0, 1, 2], None, 0), ([0, 5], [0, 1, 2], None, 0), ([5], [0, 1, 2], None, 0), ([5], [0, np.nan], None, 0),
        ([5], [0, 1], np.zeros((3, 2)), 1),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"^bad: "):
            Course("bad", np.array(steps, float), np.array(values, float), draws, n)


def logistic(half: float, width: float) -> Callable[[ndarray], ndarray]:
    """A rise from 0 at base to 1 at the last step, which is half done at ``half``, steep for a small ``width``."""

    def raw(step: ndarray) -> ndarray:
        return 1 / (1 + np.exp(-np.log(np.maximum(step, 1e-9) / half) / width))

    return lambda step: np.where(step > 0, raw(step) / raw(STEPS[-1]), 0)


def half_of(rise: Callable[[ndarray], ndarray]) -> float:
    grid = np.exp(np.linspace(0, np.log(640), 20000))
    return float(grid[np.searchsorted(rise(grid), 0.5)])


def simulated(rise: Callable[[ndarray], ndarray], error: float, rng: np.random.Generator) -> Course:
    """A course with noise that is correlated over checkpoints, and draws with the same noise."""
    columns = np.array([0.0, *STEPS])

    def noise(*size: int) -> ndarray:
        return error * (0.6 * rng.normal(size=(*size, 1)) + 0.8 * rng.normal(size=(*size, len(columns))))

    values = rise(columns) + noise()
    return Course("a", STEPS, values, values + noise(300), 200)


@pytest.mark.parametrize("error", [0.05, 0.15])
@pytest.mark.parametrize(("half", "width"), [(30.0, 0.3), (20.0, 0.05), (100.0, 0.5), (160.0, 1.5)])
def test_the_interval_of_half_holds_the_true_step(error: float, half: float, width: float) -> None:
    """At least 95 % of 300 curves, whatever the course between checkpoints; half at a checkpoint (20) is the hardest case."""
    rise, rng = logistic(half, width), np.random.default_rng(int(1000 * error + half))
    true, held = half_of(rise), 0
    for _ in range(300):
        found = half_change(simulated(rise, error, rng))
        held += bool(found.untold) or (found.step.low <= true * 1.001 and true * 0.999 <= found.step.high)
    assert held / 300 >= 0.935


@pytest.mark.parametrize(("one", "two"), [(40.0, 40.0), (57.0, 57.0), (40.0, 60.0), (20.0, 90.0)])
def test_lags_hold_the_true_lag_and_order_is_rarely_wrong(one: float, two: float) -> None:
    rises, rng = (logistic(one, 0.3), logistic(two, 0.3)), np.random.default_rng(int(one + two))
    true = half_of(rises[1]) - half_of(rises[0])
    held = wrong = right = 0
    for _ in range(200):
        early, late = (simulated(rise, 0.08, rng) for rise in rises)
        late = Course("b", STEPS, late.values, late.draws, late.n)
        found = lead_lag(early, late)
        held += bool(found.untold) or found.lag.low <= true <= found.lag.high
        wrong += found.first_moved == "b" or (one == two and found.first_moved == "a")
        right += found.first_moved == "a"
    assert held / 200 >= 0.935
    assert wrong / 200 <= 0.05
    assert right / 200 >= 0.9 or two < 90
