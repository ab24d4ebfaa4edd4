"""Bootstrap frequencies and thresholds: by hand, and against a loop that chooses draw by draw."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechprobe.selection import stability as selection_stability
from mechprobe.selection.agnostic import ranked_features, threshold_stability
from mechprobe.selection.rankings.attribution import weighted_effect
from mechprobe.selection.rules import resolve
from mechprobe.selection.stability import SampleValues, bootstrap_selection, highest

F = 12


def sample_values(seed: int = 0, *, parts: int = 1) -> SampleValues:
    rng = np.random.default_rng(seed)
    tasks = tuple(rng.standard_normal((parts, n, F)).astype(np.float32) for n in (9, 14))
    return SampleValues(tasks) if parts == 1 else SampleValues(tasks, weighted_effect)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=20), st.integers(1, 25))
def test_the_highest_are_the_head_of_the_ranking(values: list[int], n: int) -> None:
    row = np.append(np.array(values, dtype=np.float64), 4.0) / 4  # the largest is 1: relative values are the values
    expected = np.zeros(len(row), dtype=bool)
    expected[ranked_features(row[None])[:n]] = True
    assert highest(row[None], n)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("spec", ["top:4", "agnostic"])
@pytest.mark.parametrize("parts", [1, 2])
def test_frequencies_equal_a_loop_over_draws(spec: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, n_draws, seed = sample_values(parts=parts), 60, 7
    live = np.ones(F, dtype=bool)
    live[3] = False
    rng = np.random.default_rng([seed, 5])
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=n_draws) for n in (9, 14)]
    frequency, shares, chosen = np.zeros(F), [], [0, 1, 2, 4]
    for draw in range(n_draws):
        drawn = [np.repeat(part, count[draw], axis=1) for part, count in zip(samples.tasks, counts, strict=True)]
        values = SampleValues(tuple(drawn), samples.combine).values()
        try:
            ids = set(resolve(spec, values, live=live).ids)
        except Exception:  # noqa: BLE001 - no feature is task-agnostic in this draw
            ids = set()
        frequency[list(ids)] += 1 / n_draws
        shares.append(len(ids & set(chosen)) / len(ids | set(chosen)))
    options = {"live": live, "threshold": 0.2, "n_draws": n_draws, "seed": seed}
    found = bootstrap_selection(samples, spec, chosen, **options)
    assert found is not None
    np.testing.assert_allclose(found.frequency, frequency, atol=1e-9)
    assert found.jaccard.value == pytest.approx(np.median(shares))
    assert found.jaccard.n == n_draws
    assert found.frequency[3] == 0
    monkeypatch.setattr(selection_stability, "_CHUNK", 5 * F)
    pieces = bootstrap_selection(samples, spec, chosen, **options)
    assert pieces is not None
    np.testing.assert_array_equal(pieces.frequency, found.frequency)


def test_what_hangs_on_one_sample_is_not_always_chosen() -> None:
    """Feature 1 leads by one sample of ten: it is drawn again in 1 − 0.9^10 of the resamples, else feature 0 leads."""
    rows = np.zeros((1, 10, 3), dtype=np.float32)
    rows[0, :, 0], rows[0, 4, 1] = 1.0, 20.0
    live = np.ones(3, dtype=bool)
    found = bootstrap_selection(SampleValues((rows,)), "top:1", [1], live=live, threshold=0.2, n_draws=4000, seed=0)
    assert found is not None
    assert found.frequency[1] == pytest.approx(1 - 0.9**10, abs=0.03)
    assert found.frequency.sum() == pytest.approx(1.0)
    summary = found.summary([1], seed=0)
    assert (summary.n_in_95_percent, summary.n_in_half, summary.n_outside_in_half) == (0, 1, 0)


def test_samples_that_agree_give_the_same_set_every_time() -> None:
    rows = np.tile(np.array([3.0, 2.0, 1.0, 0.0], dtype=np.float32), (1, 6, 1))
    live = np.ones(4, dtype=bool)
    found = bootstrap_selection(SampleValues((rows,)), "top:2", [0, 1], live=live, threshold=0.2, n_draws=50, seed=0)
    assert found is not None
    assert found.frequency.tolist() == [1, 1, 0, 0]
    assert found.jaccard[:3] == (1, 1, 1)


def test_named_features_have_no_frequency() -> None:
    options = {"live": np.ones(F, dtype=bool), "threshold": 0.2, "seed": 0}
    assert bootstrap_selection(sample_values(), "ids:1,2", [1, 2], n_draws=10, **options) is None
    assert bootstrap_selection(sample_values(), "top:2", [1, 2], n_draws=0, **options) is None


def test_thresholds_by_hand() -> None:
    values = np.array([[1.0, 0.5, 0.25, 0.15, 0.05, 9.0], [1.0, 0.9, 0.26, 0.12, 0.9, 9.0]])
    live = np.array([True, True, True, True, True, False])
    values[:, 5] = 0.0
    found = threshold_stability(values, ("a", "b"), [0, 2], live=live, thresholds=(0.1, 0.2, 0.3))
    assert [row.all_tasks for row in found.sizes] == [4, 3, 2]
    assert [row.n_selected for row in found.sizes] == [2, 2, 1]
    assert found.sizes[0].per_task == {"a": 4, "b": 5}
    assert [pair.jaccard for pair in found.jaccard] == [3 / 4, 2 / 4, 2 / 3]
    nothing = threshold_stability(-values, ("a", "b"), [0], live=live, thresholds=(0.1, 0.2))
    assert nothing.sizes[0].all_tasks == 0
    assert np.isnan(nothing.jaccard[0].jaccard)
