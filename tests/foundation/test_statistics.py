"""Intervals and tests, compared with hand-computed values and independent implementations."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from mechprobe.statistics import (
    binomial_se,
    bootstrap_mean,
    bootstrap_ratio,
    clustered_difference,
    clustered_interval,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    paired_change,
    paired_difference,
    paired_p,
    randomization_p,
    share_interval,
    sign_flip_exact,
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


def clustered_by_hand(shares: list[float]) -> tuple[float, float]:
    """The interval of `clustered_interval` with the added problems written out, in plain Python."""
    z, n = stats.norm.ppf(0.975), len(shares)
    added = z * z / 2
    center = (sum(shares) + added) / (n + 2 * added)
    squares = sum((share - center) ** 2 for share in shares) + added * (1 - center) ** 2 + added * center**2
    half = stats.t.ppf(0.975, n - 1) * math.sqrt(squares / (n + 2 * added) / (n + 2 * added))
    return max(0.0, min(sum(shares) / n, center - half)), min(1.0, max(sum(shares) / n, center + half))


def test_a_clustered_interval_by_hand() -> None:
    found = clustered_interval([4, 0, 2, 1], [4, 4, 4, 4])
    assert (found.value, found.n) == (7 / 16, 4)
    assert (found.low, found.high) == pytest.approx(clustered_by_hand([1.0, 0.0, 0.5, 0.25]))
    assert clustered_interval([1.0, 0.0, 0.5, 0.25]) == pytest.approx(found)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=80))
def test_with_one_response_each_it_is_the_interval_of_agresti_and_coull(right: list[int]) -> None:
    found, n, z = clustered_interval(right), len(right), stats.norm.ppf(0.975)
    p = (sum(right) + z * z / 2) / (n + z * z)
    half = stats.t.ppf(0.975, n - 1) * math.sqrt(p * (1 - p) / (n + z * z))
    assert found.low == pytest.approx(max(0.0, min(found.value, p - half)), abs=1e-12)
    assert found.high == pytest.approx(min(1.0, max(found.value, p + half)), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_a_clustered_interval_holds_its_estimate_and_skips_problems_without_responses(
    rows: list[tuple[int, int]],
) -> None:
    hits, counts = [min(row) for row in rows], [max(row) for row in rows]
    found = clustered_interval(hits, counts)
    assert 0 <= found.low <= found.high <= 1
    assert found.n == sum(count > 0 for count in counts)
    if found.n:
        assert found.low <= found.value <= found.high
        assert found.value == pytest.approx(sum(hits) / sum(counts))
    else:
        assert math.isnan(found.value)


def test_one_draw_takes_wilson_tango_and_mcnemar() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random((2, 40, 1)) < 0.5
    assert share_interval(before) == wilson_interval(int(before.sum()), 40)
    assert paired_change(before, after) == paired_difference(before[:, 0], after[:, 0])
    assert paired_p(before, after) == mcnemar_exact(before[:, 0], after[:, 0])


def test_a_clustered_difference_by_hand() -> None:
    before, after = [0.0, 0.5, 1.0], [1.0, 0.75, 1.0]
    z, change = stats.norm.ppf(0.975), [1.0, 0.25, 0.0]
    total = 3 + z * z
    variance = (sum(d * d for d in change) + z * z / 2) / total - (sum(change) / total) ** 2
    half = stats.t.ppf(0.975, 2) * math.sqrt(variance / total)
    found = clustered_difference(before, after)
    assert found.value == pytest.approx(1.25 / 3)
    assert (found.low, found.high, found.n) == (pytest.approx(max(-1, 1.25 / 3 - half)), min(1.0, 1.25 / 3 + half), 3)
    assert math.isnan(clustered_difference([], []).value)


def test_draws_are_paired_by_problem() -> None:
    right = np.array([[True, False], [True, True]])
    assert paired_change(right, right).value == 0.0
    assert paired_p(right, right) == 1.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=9))
def test_the_sign_flip_test_counts_every_pattern(rows: list[tuple[int, int]]) -> None:
    change = [after - before for before, after in rows]
    sums = [sum(s * d for s, d in zip(signs, change, strict=True)) for signs in product((-1, 1), repeat=len(change))]
    expected = sum(abs(each) >= abs(sum(change)) for each in sums) / len(sums)
    found = sign_flip_exact([before for before, _ in rows], [after for _, after in rows])
    assert found == pytest.approx(expected)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_with_one_response_each_it_is_mcnemar(rows: list[tuple[bool, bool]]) -> None:
    before, after = [row[0] for row in rows], [row[1] for row in rows]
    assert sign_flip_exact(before, after) == pytest.approx(mcnemar_exact(before, after))


@pytest.mark.slow
def test_the_clustered_intervals_cover() -> None:
    from benchmarks.interval_coverage import rows

    low = [(what, n, k, value, found) for what, n, k, value, found in rows(4000, seed=0) if min(found) < 0.93]
    assert not low
