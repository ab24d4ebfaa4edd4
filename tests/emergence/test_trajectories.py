"""Trajectories: the onset of planted jumps and slow rises, half-lives, and features without a course."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechprobe.emergence.config import TrajectoryThresholds
from mechprobe.emergence.trajectories import NO_ONSET, Trajectories, kinds, trajectories

LIMITS = TrajectoryThresholds()


def course(norms: np.ndarray, **changes: Any) -> Trajectories:
    limits = LIMITS.replace(**changes)
    return trajectories(norms, np.zeros(len(norms), bool), np.linspace(0, 1, norms.shape[1]), limits)


@given(
    n=st.integers(2, 12),
    data=st.data(),
    base=st.floats(0, 0.6),
    noise=st.floats(0, 0.09),
    size=st.floats(0.01, 100),
    sign=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_onset_of_a_jump_is_exact(
    n: int, data: st.DataObject, base: float, noise: float, size: float, sign: bool
) -> None:
    onset = data.draw(st.integers(1, n))
    wobble = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n + 1, max_size=n + 1)))
    strength = (
        np.where(np.arange(n + 1) >= onset, 1.0, base) if sign else np.where(np.arange(n + 1) >= onset, base, 1.0)
    )
    rise = 1.0 - base
    norms = np.abs(strength + noise * rise * wobble)[None] * size
    found = course(norms)
    assert found.kind == ["emerging" if sign else "fading"]
    assert found.onset[0] == onset
    assert (onset - 1) / n <= found.half_rise[0] <= onset / n
    assert found.persistence[0] == 1.0
    assert np.isnan(found.half_life[0])


@given(n=st.integers(2, 12), data=st.data(), noise=st.floats(0, 0.04))
@settings(max_examples=200, deadline=None)
def test_the_onset_of_a_slow_rise_is_exact_to_one_checkpoint(n: int, data: st.DataObject, noise: float) -> None:
    """A rise of at least an eighth per checkpoint: two of its checkpoints are above the onset share and the noise."""
    last_zero = data.draw(st.integers(max(0, n - 8), n - 1))
    wobble = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n + 1, max_size=n + 1)))
    strength = ((np.arange(n + 1) - last_zero) / (n - last_zero)).clip(0)
    found = course(np.abs(strength + noise * wobble * (np.arange(n + 1) > 0))[None], onset_share=0.15)
    assert found.kind == ["emerging"]
    assert abs(int(found.onset[0]) - (last_zero + 1)) <= 1


def test_one_noisy_checkpoint_is_not_an_onset() -> None:
    found = course(np.array([[0.1, 0.9, 0.1, 0.1, 0.8, 1.0]]))
    assert found.onset.tolist() == [4]


def test_what_comes_and_goes_has_a_half_life() -> None:
    found = course(np.array([[0.0, 1.0, 1.0, 0.2, 0.0], [1.0, 1.0, 0.2, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 0.95]]))
    assert found.kind == ["transient", "dipping", "steady"]
    assert found.onset.tolist() == [1, 2, NO_ONSET]
    assert found.half_life[0] == pytest.approx(0.25 * 1 + 0.25 * 0.5 / 0.8)  # from the first peak, at 0.25
    assert found.persistence.tolist()[0] == pytest.approx(0.75)
    assert np.isnan([found.half_rise[2], found.half_life[2], found.persistence[2]]).all()


def test_dead_features_have_no_course() -> None:
    norms = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    assert kinds(norms, np.array([True, False, False]), 0.2) == ["dead", "dead", "steady"]
