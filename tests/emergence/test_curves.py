"""Emergence curves: against a second, naive implementation, and their intervals."""

from itertools import pairwise

import numpy as np
import pytest

from mechprobe.emergence.curves import ArmNumbers, measure_curves


def random_numbers(seed: int, n: int = 40, columns: int = 5) -> ArmNumbers:
    rng = np.random.default_rng(seed)
    decoder = rng.normal(size=(n, columns, 7)) * rng.uniform(0.05, 2, size=(n, columns, 1))
    confirmed = rng.random((n, columns - 1)) < 0.5
    return ArmNumbers(np.abs(decoder).sum(2), decoder, confirmed, np.linspace(0, 1, columns), 10, 2 / 3)


@pytest.mark.parametrize("seed", range(3))
def test_a_naive_implementation_gives_the_same_curves(seed: int) -> None:
    numbers = random_numbers(seed)
    values = measure_curves(numbers, draws=100, seed=(0,)).values
    n, columns, width = numbers.decoder.shape
    norm = [[sum(abs(float(v)) for v in numbers.decoder[k, c]) for c in range(columns)] for k in range(n)]
    for c in range(columns):
        top = sum((norm[k][c] - norm[k][0]) * (norm[k][-1] - norm[k][0]) for k in range(n))
        bottom = sum((norm[k][-1] - norm[k][0]) ** 2 for k in range(n))
        assert values["reached_norm"][c] == pytest.approx(top / bottom, rel=1e-6, abs=1e-12)
        d = numbers.decoder
        top = sum((d[k, c, j] - d[k, 0, j]) * (d[k, -1, j] - d[k, 0, j]) for k in range(n) for j in range(width))
        bottom = sum((d[k, -1, j] - d[k, 0, j]) ** 2 for k in range(n) for j in range(width))
        assert values["reached_shift"][c] == pytest.approx(top / bottom, rel=1e-6, abs=1e-12)
        moved = sum(sum((d[k, c, j] - d[k, 0, j]) ** 2 for j in range(width)) ** 0.5 for k in range(n))
        length = sum(sum(d[k, 0, j] ** 2 for j in range(width)) ** 0.5 for k in range(n))
        assert values["relative_shift"][c] == pytest.approx(moved / length, rel=1e-6, abs=1e-12)
    sets = []
    for c in range(1, columns):
        share = [norm[k][c] / (norm[k][c] + norm[k][0]) for k in range(n)]
        specific = [s >= 2 / 3 or s <= 1 / 3 for s in share]
        agreed = [s and bool(numbers.confirmed[k, c - 1]) for k, s in enumerate(specific)]
        assert values["departure"][c - 1] == pytest.approx(sum(abs(s - 0.5) for s in share) / n, rel=1e-6)
        assert values["specific"][c - 1] == pytest.approx(sum(specific) / n)
        assert values["confirmed"][c - 1] == pytest.approx(sum(agreed) / n)
        sets.append({k for k in range(n) if sum(other > share[k] for other in share) < 10})
    expected = [len(a & b) / 10 for a, b in pairwise(sets)]
    np.testing.assert_allclose(values["adjacent_overlap"], expected)


def test_the_last_checkpoint_has_reached_all_of_the_change_and_base_none() -> None:
    values = measure_curves(random_numbers(4), draws=100, seed=(0,)).values
    for name in ("reached_norm", "reached_shift"):
        assert values[name][[0, -1]].tolist() == [0.0, 1.0]


def test_intervals_hold_their_value_and_one_seed_gives_one_result() -> None:
    one, two = (measure_curves(random_numbers(1), draws=200, seed=(3, 0)).intervals() for _ in range(2))
    assert one == two
    for cells in (one["departure"], one["specific"], one["reached_shift"]):
        assert all(cell.low <= cell.value + 1e-9 and cell.value <= cell.high + 1e-9 and cell.n == 40 for cell in cells)
