"""The dip statistic: a case by hand, its symmetries, and its level and power."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechprobe.dynamics import dip_statistic as module
from mechprobe.dynamics.dip_statistic import Noise, dip_statistic, recovery_statistic
from mechprobe.dynamics.dip_test import CurveTester, calibrate

EIGHT = Noise(1.0, (1.0,) * 8)


def by_paths(curve: list[float], noise: Noise) -> tuple[float, float]:
    """Both statistics by adding the paths of the definition one by one, on a fine grid of the true base."""
    from scipy.stats import norm

    n, unit = len(noise.checkpoints), noise.differences
    grid = np.linspace(-4.5, 3.0, 4001) * noise.base + curve[0]
    weight = np.exp(-0.5 * ((curve[0] - grid) / noise.base) ** 2)

    def lik(place: int, state: str) -> np.ndarray:
        above, scale = (curve[1 + place] - grid) / noise.checkpoints[place], unit[place] / noise.checkpoints[place]
        up = norm.cdf(above) / (4 * scale)
        down = norm.cdf(-above) / (4 * scale)
        return {
            "base": norm.pdf(above), "up": up, "below": (norm.pdf(above + 3 * scale) + down) / 2,
            "shoulder": norm.pdf(above + 1.5 * scale), "1.5": norm.pdf(above - 1.5 * scale), "2.0": norm.pdf(above - 2 * scale),
        }[state]  # fmt: skip

    def path(states: list[str]) -> float:
        return float((weight * np.prod([lik(place, state) for place, state in enumerate(states)], axis=0)).mean())

    without = path(["base"] * n)
    for start in range(n):
        plateaus = (module.NO_PLATEAUS, module.FIRST_PLATEAUS)[start] if start < 2 else module.PLATEAUS
        without += (module.UP if start else module.UP_AT_ONCE) * path(["base"] * start + ["up"] * (n - start))
        without += sum(w * path(["base"] * start + [str(h)] * (n - start)) for h, w in plateaus.items())
    lasting = over = 0.0
    for start, width in itertools.product(range(n), range(1, n + 1)):
        stop = start + width
        if stop > n:
            continue
        for left, right, after in itertools.product((0, 1), (0, 1), ("base", "up")):
            if (left and not start) or (right and stop == n) or (stop == n and after == "up"):
                continue
            if right and stop + 1 == n and after == "up":
                continue
            rest = n - stop - right
            states = (
                ["base"] * (start - left)
                + ["shoulder"] * left
                + ["below"] * width
                + ["shoulder"] * right
                + [after] * rest
            )
            share = (module.SHOULDER if left else 1 - module.SHOULDER) if start else 1.0
            share *= (module.SHOULDER if right else 1 - module.SHOULDER) if stop < n else 1.0
            share *= {"base": 1 - module.AFTER_UP, "up": module.AFTER_UP}[after] if rest else 1.0
            found = share * (1 + (module.SINGLE if width == 1 else 0)) * path(states)
            if stop == n or (right and stop + 1 == n):
                lasting += found
            else:
                over += found
    count = n * (n + 1) / 2 + module.SINGLE * n
    return float(np.log((lasting + over) / count / without)), float(np.log(over / lasting))


@pytest.mark.parametrize("curve", [[0.0, -0.3, -4.0, 0.2], [0.5, 3.0, 4.0, 6.0], [0.0, -1.0, -2.0, -3.0]])
def test_statistics_equal_the_sum_over_paths(curve: list[float]) -> None:
    noise = Noise(1.0, (0.8, 1.0, 1.3))
    dip, recovery = by_paths(curve, noise)
    assert dip_statistic(np.array([curve]), noise)[0] == pytest.approx(dip, abs=0.06)
    assert recovery_statistic(np.array([curve]), noise)[0] == pytest.approx(recovery, abs=0.2)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=4, max_size=6), st.floats(-100, 100), st.floats(0.01, 50))
def test_level_and_unit_do_not_matter(curve: list[float], shift: float, unit: float) -> None:
    noise, n = Noise(1.0, (1.0,) * (len(curve) - 1)), len(curve) - 1
    plain = dip_statistic(np.array([curve]), noise)
    moved = dip_statistic(np.array([curve]) * unit + shift * unit, Noise(unit, (unit,) * n))
    assert moved == pytest.approx(plain, abs=1e-6)


def test_deeper_is_larger_and_extreme_curves_stay_finite() -> None:
    curves = np.zeros((6, 9))
    curves[:, 4] = -np.array([0, 2, 4, 8, 50, 4000])
    found = dip_statistic(curves, EIGHT)
    assert np.isfinite(found).all()
    assert (np.diff(found[:4]) > 0).all()
    assert np.isfinite(dip_statistic(curves * -1000, EIGHT)).all()


def test_hundreds_of_checkpoints_stay_in_range() -> None:
    noise = Noise(1.0, (1.0,) * 400)
    curves = np.random.default_rng(0).normal(size=(2, 401))
    curves[1, 200:220] -= 5
    flat, dip = dip_statistic(curves, noise)
    assert -20 < flat < 5
    assert 20 < dip < 600


def test_level_on_flat_curves_and_gains_and_power_on_dips() -> None:
    tester = CurveTester.of(EIGHT, draws=2000, seed=1)
    noise = EIGHT.draw(np.random.default_rng(2), 3000)

    def rate(means: list[float]) -> float:
        return float((tester.dips(noise + np.array([0, *means]) * 2**0.5) <= 0.05).mean())

    assert rate([0] * 8) <= 0.06
    for gain in ([3] * 8, [0, 0, 3, 3, 3, 3, 3, 3], [0] * 7 + [20], list(range(8))):
        assert rate(gain) <= 0.065, gain
    assert rate([20] * 3 + [0] * 5) <= 0.25  # rises and returns to base: fewer than a dip, but no 5 %
    assert rate([0, 0, 0, -3, 0, 0, 0, 0]) >= 0.87
    assert rate([0, 0, -1.5, -3, -1.5, 0, 0, 0]) >= 0.9
    assert rate([0, -3, -3, 0, 0, 0, 0, 0]) >= 0.95
    assert rate([0, -1.5, -3, 1.5, 3, 3, 3, 3]) >= 0.9
    assert rate([0, 0, -1.5, -3, -3, -3, -3, -3]) >= 0.97


def test_calibration_is_reused_for_equal_ratios() -> None:
    first = calibrate(Noise(1.0, (1.0, 2.0, 1.0)), draws=200, seed=0)
    assert calibrate(Noise(0.1, (0.1, 0.2, 0.1)), draws=200, seed=0) is first
    assert calibrate(Noise(0.1, (0.1, 0.3, 0.1)), draws=200, seed=0) is not first


def test_p_values_have_their_level_under_the_null() -> None:
    tester = CurveTester.of(Noise(1.0, (1.0,) * 4), draws=2000, seed=1)
    curves = tester.noise.draw(np.random.default_rng(5), 4000)
    for p in (tester.dips(curves), tester.gains(curves), tester.late_declines(curves)):
        assert 0.0 < p.min() <= p.max() <= 1.0
        assert (p <= 0.05).mean() <= 0.062
        assert (p <= 0.2).mean() <= 0.22
