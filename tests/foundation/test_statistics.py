"""Intervals and tests, compared with hand-computed values and independent implementations."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from mechprobe.statistics import (
    binomial_se,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    randomization_p,
    wilson_interval,
)


def test_binomial_se_by_hand() -> None:
    assert binomial_se(5, 10) == pytest.approx(math.sqrt(0.025))
    assert math.isnan(binomial_se(0, 0))


@given(st.integers(1, 300), st.data())
def test_wilson_equals_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
    ours = wilson_interval(k, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours.low <= ours.value <= ours.high


def test_wilson_without_samples_is_the_whole_range() -> None:
    interval = wilson_interval(0, 0)
    assert (interval.low, interval.high, interval.n) == (0.0, 1.0, 0)


def test_mcnemar_by_hand() -> None:
    # 1 lost, 5 gained: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64
    before = [True, False, False, False, False, False, True]
    after = [False, True, True, True, True, True, True]
    assert mcnemar_exact(before, after) == pytest.approx(14 / 64)
    assert mcnemar_exact(after, after) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    first, missing, second = holm([0.01, math.nan, 0.04])
    assert (first, second) == pytest.approx((0.02, 0.04))
    assert math.isnan(missing)


def test_bootstrap_is_seeded_and_covers() -> None:
    values = np.random.default_rng(0).normal(1.0, 1.0, 200)
    first, again = bootstrap_mean(values, seed=3), bootstrap_mean(values, seed=3)
    assert first == again
    assert first.low < 1.0 < first.high
    assert first.value == pytest.approx(values.mean())


def test_paired_bootstrap_sign_and_lengths() -> None:
    effect = paired_bootstrap([0, 0, 1, 0], [1, 1, 1, 0], seed=0)
    assert effect.value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="equal lengths"):
        paired_bootstrap([0], [0, 1], seed=0)


def test_randomization_p_by_hand() -> None:
    assert randomization_p(0.5, [0.1, 0.2, 0.6]) == pytest.approx(2 / 4)
    assert randomization_p(0.5, [0.1] * 19) == pytest.approx(1 / 20)
    assert randomization_p(-0.5, [0.1] * 19, side="less") == pytest.approx(1 / 20)
    assert math.isnan(randomization_p(1.0, []))


def test_a_ratio_by_hand_resampled_by_group() -> None:
    # texts of 1, 2 and 7 tokens: (2 + 2 + 6) / 10
    ratio = bootstrap_ratio([2.0, 2.0, 6.0], [1, 2, 7], seed=0)
    assert (ratio.value, ratio.n) == (1.0, 10)
    # drawing one text three times gives 2, 1 or 6/7, which bounds every draw
    assert 6 / 7 <= ratio.low < 1.0 < ratio.high <= 2.0
    assert bootstrap_ratio([3.0, 6.0], [3, 6], seed=0)[1:3] == (1.0, 1.0)
    assert math.isnan(bootstrap_ratio([], [], seed=0).value)


def test_bootstrap_equals_one_draw_at_a_time() -> None:
    values = np.random.default_rng(1).integers(-1, 2, 50)
    rng = np.random.default_rng(5)
    means = [values[rng.integers(0, 50, 50)].mean() for _ in range(300)]
    found = bootstrap_mean(values, seed=5, draws=300)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
