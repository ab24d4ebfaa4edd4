"""Response length: surge, contraction, late rise, lag and correlation."""

import numpy as np
import pytest

from mechprobe.dynamics import length_course
from mechprobe.errors import InputError

STEPS = [10, 20, 40, 80, 160]


def test_numbers_by_hand() -> None:
    found = length_course(STEPS, [1000, 4000, 29000, 20000, 9000, 11700], [46, 40, 33, 45, 50], 49)
    assert found.surge_ratio == 29
    assert found.surge_step == 20
    assert found.contraction_ratio == pytest.approx(11700 / 29000)
    assert found.rise_ratio == pytest.approx(1.3)
    assert found.late_rerise
    assert np.isnan(found.rerise_p)
    assert found.lag == 20
    # ranks of length 1 2 6 5 3 4, of score 5 4 2 1 3 6 → 1 − 6 Σd² / (n (n² − 1)) = 1 − 6 · 56 / 210
    assert found.spearman == pytest.approx(-0.6)


def test_no_rise_after_the_surge() -> None:
    found = length_course(STEPS, [10, 20, 60, 30, 20, 20], [1, 2, 3, 4, 5], 0.5)
    assert not found.late_rerise
    assert found.rise_ratio == 1


def test_late_rise_of_items_is_tested() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.normal([[20], [40], [90], [60], [40], [40]], 8, size=(6, 200))
    assert not length_course(STEPS, lengths, [1, 2, 3, 4, 5], 0).late_rerise
    lengths[-1] += 5
    found = length_course(STEPS, lengths, [1, 2, 3, 4, 5], 0)
    assert found.late_rerise
    assert found.rerise_p < 0.001


def test_constant_scores_have_no_correlation_and_odd_lengths_are_refused() -> None:
    assert np.isnan(length_course(STEPS, [1, 2, 3, 4, 5, 6], [5] * 5, 5).spearman)
    with pytest.raises(InputError, match="3 lengths"):
        length_course(STEPS, [1, 2, 3], [5] * 5, 5)
    with pytest.raises(InputError, match="above 0"):
        length_course(STEPS, [0, 1, 2, 3, 4, 5], [5] * 5, 5)
