"""Score intervals against the closed forms of Tango and Wilson, their coverage, and ratios of changes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from benchmarks.interval_coverage import coverage_of_flips, coverage_of_ratio
from mechprobe.score_intervals import Z, difference_interval, mean_interval
from mechprobe.statistics import (
    clustered_difference,
    paired_change,
    paired_difference,
    paired_ratio,
    welch_difference,
    wilson_interval,
)


def tango_statistic(lost: int, gained: int, n: int, difference: float) -> float:
    """The statistic of Tango (1998) in his closed form, an implementation independent of the library's."""
    a = 2 * n
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    q = (math.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a)
    return (gained - lost - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.data())
def test_the_ends_are_where_tango_s_statistic_is_critical(n: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    low, high = difference_interval(lost, gained, n)
    assert low <= (gained - lost) / n <= high
    for end, level in ((low, Z), (high, -Z)):
        if abs(end) < 1:
            assert tango_statistic(lost, gained, n, end) == pytest.approx(level, abs=1e-5)
    back = difference_interval(gained, lost, n)
    assert (low, high) == pytest.approx((-back[1], -back[0]), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.data())
def test_for_zeros_and_ones_it_is_wilson_s_interval(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    wilson = wilson_interval(right, n)
    assert mean_interval((n - right, right), (0.0, 1.0)) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


@pytest.mark.parametrize("n", [20, 64])
@pytest.mark.parametrize("flips", [0.01, 0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("one_way", [1.0, 0.75])
def test_the_interval_covers_where_few_samples_change(n: int, flips: float, one_way: float) -> None:
    """Exactly, by enumeration. The percentile bootstrap covers 0.64 at n = 20 with 5 % of the samples changed one way."""
    tango, bootstrap = coverage_of_flips(n, flips, one_way)
    assert tango >= 0.93
    if flips == 0.05 and one_way == 1:
        assert bootstrap < 0.93


def test_without_a_change_the_interval_has_a_width() -> None:
    none = np.zeros(20, dtype=bool)
    found = paired_difference(none, none)
    assert (found.value, found.n) == (0.0, 20)
    assert -found.low == found.high == pytest.approx(Z * Z / (20 + Z * Z), abs=1e-6)
    assert math.isnan(paired_difference(none[:0], none[:0]).value)


def up_to(n_right: int, n: int) -> np.ndarray:
    return (np.arange(n) < n_right)[:, None]


def test_a_ratio_is_one_minus_zero_by_the_difference() -> None:
    """The share of the ceiling excludes 1 exactly where the difference to the ceiling excludes 0, both by Tango's statistic."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        before, after, whole = (rng.random((64, 1)) < p for p in (0.2, 0.6, 0.75))
        share, beyond = paired_ratio(before, after, whole), paired_change(whole, after)
        assert share.low <= share.value <= share.high
        assert (share.high < 1) == (beyond.high < 0)
        assert (share.low > 1) == (beyond.low > 0)


def test_ratios_by_hand() -> None:
    found = paired_ratio(up_to(0, 100), up_to(30, 100), up_to(60, 100))
    assert found.value == 0.5
    losses = paired_ratio(up_to(100, 100), up_to(70, 100), up_to(40, 100))
    assert losses == pytest.approx(found)  # a loss counts as a gain does
    nothing = paired_ratio(up_to(0, 64), up_to(0, 64), up_to(32, 64))
    assert nothing.low < 0 < 0.1 < nothing.high  # 64 samples cannot show that a share is below a tenth of half of them
    assert math.isnan(paired_ratio(up_to(0, 9), up_to(3, 9), up_to(0, 9)).value)


def test_an_end_without_limit_is_infinite() -> None:
    """One sample of the reference: its change may be 0, so the ratio has no upper limit."""
    found = paired_ratio(up_to(0, 20), up_to(10, 20), up_to(1, 20))
    assert found.value == 10
    assert found.high == math.inf


def test_ratios_of_several_draws_agree_with_the_clustered_difference() -> None:
    rng = np.random.default_rng(2)
    before, after, whole = (rng.random((80, 4)) < p for p in (0.2, 0.5, 0.8))
    found = paired_ratio(before, after, whole)
    for ratio, side in ((found.low, "low"), (found.high, "high")):
        change, reference = (part.mean(axis=1) - before.mean(axis=1) for part in (after, whole))
        end = getattr(clustered_difference(ratio * reference, change), side)
        assert end == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("share", "ceiling"), [(0.1, 0.5), (0.5, 0.2)])
def test_shares_of_the_ceiling_are_covered(share: float, ceiling: float) -> None:
    assert coverage_of_ratio(64, share, ceiling, simulations=300, seed=1) >= 0.92


def test_welch_by_hand() -> None:
    from scipy import stats

    first, second = [1.0, 2.0, 4.0], [0.0, 0.5, 0.2]
    found = welch_difference(first, second)
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high, found.n) == (pytest.approx(theirs.low), pytest.approx(theirs.high), 3)
    assert math.isnan(welch_difference([1.0], [2.0, 3.0]).low)
