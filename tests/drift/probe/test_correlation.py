"""Rank correlations of checkpoints: against scipy and brute force; a common trend is no detrended correlation."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr

from mechprobe.drift.probe.correlation import Points, associate, correlations
from mechprobe.drift.probe.profile import Norm
from mechprobe.emergence.arms import all_arms


def points(x: list[float], y: list[float]) -> Points:
    return Points(np.arange(1, len(x) + 1) / len(x), np.array(x, float), np.array(y, float))


def test_one_arm_is_spearman_with_all_permutations() -> None:
    x, y = [1, 3, 2, 5, 4, 7.0], [2, 1, 4, 3, 6, 9.0]
    found = associate([points(x, y)], detrend=False, seed=0)
    assert found.rho == pytest.approx(float(np.asarray(spearmanr(x, y))[0]))
    all_of_them = [abs(float(np.asarray(spearmanr(x, order))[0])) for order in permutations(y)]
    assert found.p == pytest.approx(np.mean([value >= abs(found.rho) - 1e-9 for value in all_of_them]))
    assert (found.exact, found.n) == (True, 6)


def test_ten_checkpoints_draw_permutations() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=10)
    found = associate([points(x.tolist(), (x + 0.1 * rng.normal(size=10)).tolist())], detrend=False, seed=0)
    assert not found.exact
    assert 1e-4 <= found.p < 0.01


def test_fewer_than_six_checkpoints_claim_nothing() -> None:
    found = associate([points([1, 2, 3, 4, 5.0], [1, 2, 3, 4, 5.0])], detrend=False, seed=0)
    assert found.rho == pytest.approx(1)
    assert np.isnan(found.p)
    assert np.isnan(associate([points([1.0] * 6, [1, 2, 3, 4, 5, 6.0])], detrend=False, seed=0).rho)


def test_a_difference_between_arms_is_no_correlation() -> None:
    """Within both arms x falls where y rises; pooled over the arms without regard to them, both would rise together."""
    low, high = points([3, 2, 1.0], [1, 2, 3.0]), points([13, 12, 11.0], [11, 12, 13.0])
    assert associate([low, high], detrend=False, seed=0).rho == pytest.approx(-1)


def test_two_curves_that_only_share_a_trend_are_not_correlated_when_detrended() -> None:
    rng, raw, detrended = np.random.default_rng(1), [], []
    for _ in range(150):
        trend = np.log(np.arange(1, 8))
        arm = points((trend + 0.2 * rng.normal(size=7)).tolist(), (trend + 0.2 * rng.normal(size=7)).tolist())
        raw.append(associate([arm], detrend=False, seed=0).p < 0.05)
        detrended.append(associate([arm], detrend=True, seed=0).p < 0.05)
    assert np.mean(raw) > 0.8
    assert np.mean(detrended) <= 0.15  # about 0.1: residuals are exchangeable only approximately


def test_detrended_noise_that_is_shared_is_found() -> None:
    rng, found = np.random.default_rng(2), []
    for _ in range(30):
        trend, shared = np.log(np.arange(1, 9)), rng.normal(size=8)
        arms = [points((trend + shared).tolist(), (trend + shared).tolist()) for _ in range(2)]
        found.append(associate(arms, detrend=True, seed=0).p < 0.05)
    assert np.mean(found) == 1


def test_arms_are_tested_alone_and_pooled_with_holm_over_the_numbers() -> None:
    names = [
        "base",
        *(f"rl@step_{k:06d}" for k in range(1, 7)),
        "sft@step_000001",
        "sft@step_000002",
        "sft@step_000003",
        "one",
    ]
    arms = all_arms(names, "base", {})
    drift = {name: Norm(float(k), 0, 1, 0, 0, 9) for k, name in enumerate(names)}
    numbers = {
        "a": {name: float(k) for k, name in enumerate(names)},
        "b": {name: float(k % 3) for k, name in enumerate(names)},
    }
    found = {(each.number, each.arm, each.detrended): each for each in correlations(drift, arms, numbers, 0)}
    assert {arm for _, arm, _ in found} == {"rl", "sft", "pooled"}
    assert found["a", "rl", False].rho == pytest.approx(1)
    assert found["a", "rl", False].p == pytest.approx(2 / 720)
    assert found["a", "rl", False].p_holm == pytest.approx(4 / 720)
    assert np.isnan(found["a", "sft", False].p)
    assert found["a", "pooled", False].n == 9
    assert found["a", "pooled", False].p == pytest.approx(2 / (720 * 6))
    assert correlations(drift, arms, {}, 0) == ()
