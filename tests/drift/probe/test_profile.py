"""The numbers of a profile: planted values, and what must hold for all profiles."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from mechprobe.drift.probe import profile

COURSES = arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 6)), elements=st.floats(-1, 1, width=32))


def test_planted_course() -> None:
    course = np.array([[0.2, 0.4, 0.5], [0.5, 0.4, 0.5], [0.2, 0.8, 0.5]])
    assert profile.drift(course, 1) == pytest.approx(0.3)
    assert profile.drift(course, 2, 2) == pytest.approx(0.4)
    assert profile.step_drift(course, 2) == pytest.approx(0.7)
    assert profile.path_length(course) == pytest.approx(1.0)
    gain = profile.gains(course, 2)
    assert gain == pytest.approx([0, 0.4, 0])
    assert profile.imbalance(gain) == pytest.approx(np.std([0, 0.4, 0]))
    assert profile.gain_range(gain) == pytest.approx(0.4)
    assert profile.jaggedness(gain) == pytest.approx((0.4 - 0.4 / 3 + 2 * 0.4 / 3) / 3)
    assert profile.gain_entropy(gain) == 0
    assert profile.gain_entropy(np.array([0.1, 0.1, 0.1])) == pytest.approx(1)
    assert np.isnan(profile.gain_entropy(np.array([-0.1, 0.0])))
    assert profile.loss(np.array([-0.3, 0.4, -0.1])) == pytest.approx(0.4)


@given(COURSES)
def test_what_holds_for_all_profiles(course: np.ndarray) -> None:
    last = len(course) - 1
    for order in (1, 2):
        assert profile.drift(course, last, order) >= 0
        assert profile.path_length(course, order) >= profile.drift(course, last, order) - 1e-9
    gain = profile.gains(course, last)
    rises = profile.loss(-gain)
    assert profile.drift(course, last) == pytest.approx(profile.loss(gain) + rises)
    assert profile.jaggedness(gain) <= profile.imbalance(gain) + 1e-9
    assert profile.imbalance(gain) <= profile.gain_range(gain) + 1e-9
    entropy = float(profile.gain_entropy(gain))
    assert np.isnan(entropy) or -1e-9 <= entropy <= 1 + 1e-9


@given(COURSES, st.randoms())
def test_every_measure_is_sublinear(course: np.ndarray, random: object) -> None:
    other = np.random.default_rng(0).normal(size=course.shape)
    for name, measure in profile.MEASURES.items():
        both = measure(course + other, 1)
        assert both <= measure(course, 1) + measure(other, 1) + 1e-9, name
        assert measure(2 * course, 1) == pytest.approx(2 * measure(course, 1)), name


def test_collapse_needs_delta_and_two_errors() -> None:
    gain, error = np.array([[-0.04, -0.2, -0.2]]), np.array([[0.001, 0.12, 0.01]])
    assert profile.below_base(gain, error, 0.05).tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        ([0, 0], ""),
        ([0, 1, 1, 0], "persistent"),
        ([1, 0, 0], "transient"),
        ([1, 0, 1], "at the end"),
        ([1], "at the end"),
    ],
)
def test_kinds_of_collapse(below: list[int], kind: str) -> None:
    assert profile.collapse_kind([bool(each) for each in below]) == kind


def test_transferability_is_the_ratio_of_mean_relative_gains() -> None:
    base, tuned = np.array([0.5, 0.2, 0.4]), np.array([0.75, 0.3, 0.3])
    assert profile.transferability(base, tuned, [0], [1, 2]) == pytest.approx(100 * ((0.5 - 0.25) / 2) / 0.5)
    assert profile.transferability(base, tuned, [0], [2]) == pytest.approx(-50)
    assert np.isinf(profile.transferability(base, np.array([0.5, 0.3, 0.4]), [0], [1]))
