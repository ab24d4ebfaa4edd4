"""Shares of a gain from made accuracies: given where the gain is clear of noise, and not where a task is too small."""

import math

import pytest

from mechprobe.interventions.localize import gain_of, gain_share
from mechprobe.statistics import wilson_interval


def accuracy(right: int, n: int) -> dict[str, list[float | int]]:
    return {"sum": list(wilson_interval(right, n))}


def test_shares_by_hand() -> None:
    low, high = accuracy(10, 40), accuracy(30, 40)
    assert gain_share(low, high, accuracy(20, 40), rising=True) == pytest.approx(0.5)
    assert gain_share(low, high, accuracy(10, 40), rising=False) == pytest.approx(1.0)
    gain, error = gain_of(low, high)
    assert gain == pytest.approx(20 / 42)
    assert error == pytest.approx(math.sqrt(2 * (11 / 42) * (31 / 42) / 42))


@pytest.mark.parametrize(("n", "clear"), [(1, False), (2, False), (8, True)])
def test_a_task_of_one_sample_has_no_gain_to_share(n: int, clear: bool) -> None:
    """Every sample wrong before and right after: the spread of so few is not nothing."""
    share = gain_share(accuracy(0, n), accuracy(n, n), accuracy(n, n), rising=True)
    assert (share == 1.0) if clear else math.isnan(share)


def test_no_gain_has_no_shares() -> None:
    for before, after in ((20, 20), (21, 20), (20, 22)):
        assert math.isnan(gain_share(accuracy(before, 40), accuracy(after, 40), accuracy(20, 40), rising=True))
