"""Matching by decoders equals brute force and does not depend on the order of features."""

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import linear_sum_assignment

from mechprobe.errors import ConfigError
from mechprobe.features.validation import matching
from mechprobe.features.validation.matching import match_features, matched_overlap, unit


def naive_best_sum(first: np.ndarray, second: np.ndarray) -> float:
    """The largest sum of cosines over all one-to-one assignments, by trying each."""
    best = -np.inf
    for order in permutations(range(len(second)), len(first)):
        total = 0.0
        for row, column in enumerate(order):
            a, b = first[row], second[column]
            total += float(sum(x * y for x, y in zip(a, b, strict=True))) / (
                float(sum(x * x for x in a)) ** 0.5 * float(sum(y * y for y in b)) ** 0.5
            )
        best = max(best, total)
    return best


@given(seed=st.integers(0, 10_000), n=st.integers(1, 5), extra=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_the_sum_of_cosines_is_the_largest_there_is(seed: int, n: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(n, 4)), rng.normal(size=(n + extra, 4))
    found = match_features(first, second)
    assert len(set(found.partner.tolist())) == n
    assert float(found.cosine.sum()) == pytest.approx(naive_best_sum(first, second), rel=1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_shuffled_and_rescaled_copy_is_found_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    decoder = rng.normal(size=(20, 12))
    order = rng.permutation(20)
    copy = decoder[order] * rng.uniform(0.1, 10, size=(20, 1))
    found = match_features(decoder, copy, min_cosine=0.999)
    assert found.found_share() == 1.0
    assert (order[found.partner] == np.arange(20)).all()
    top = list(range(7))
    partners = [int(np.flatnonzero(order == index)[0]) for index in top]
    assert matched_overlap(top, partners, found, 7) == 1.0


def test_same_indices_in_unrelated_dictionaries_are_no_overlap() -> None:
    rng = np.random.default_rng(0)
    found = match_features(rng.normal(size=(30, 64)), rng.normal(size=(30, 64)))
    assert matched_overlap(range(30), range(30), found, 30) == 0.0
    assert found.found_share() == 0.0


def test_dead_and_zero_features_have_no_partner() -> None:
    decoder = np.eye(4)
    decoder[1] = 0
    alive = np.array([True, True, False, True])
    found = match_features(decoder, decoder, alive=(alive, np.ones(4, dtype=bool)))
    assert found.partner.tolist() == [0, -1, -1, 3]
    assert np.isnan(found.cosine[1:3]).all()
    assert found.found.tolist() == [True, False, False, True]
    assert found.translate([0, 1]) == [0, None]


def test_other_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match="widths 3 and 4"):
        match_features(np.eye(3), np.eye(4))


@given(seed=st.integers(0, 10_000), n=st.integers(1, 30), extra=st.integers(-5, 20), noise=st.floats(0.0, 1.5))
@settings(max_examples=60, deadline=None)
def test_candidates_give_the_largest_sum_of_cosines_that_reach_the_threshold(
    seed: int, n: int, extra: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(n, 6))
    second = rng.normal(size=(max(1, n + extra), 6))
    second[: min(n, len(second))] = first[: len(second)] + noise * second[: min(n, len(second))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "DENSE_PAIRS", 0)
        patch.setattr(matching, "_BLOCK", 7)
        found = match_features(first, second, min_cosine=0.6)
    assert not found.all_pairs
    chosen = found.partner[found.partner >= 0]
    assert len(set(chosen.tolist())) == len(chosen)
    cosine = unit(first) @ unit(second).T
    cosine[cosine < 0.6] = 0.0
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    assert float(np.nansum(np.where(found.found, found.cosine, 0.0))) == pytest.approx(cosine[rows, columns].sum())
    assert found.found_share() == pytest.approx(found.found.sum() / n)


def test_a_large_dictionary_is_matched_without_the_cosines_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a shuffled dictionary is replaced by noise; no array of all pairs is made on the way."""
    rng = np.random.default_rng(0)
    first, order = rng.normal(size=(3000, 128)).astype(np.float32), rng.permutation(3000)
    second = np.where(np.arange(3000)[:, None] < 1500, first, rng.normal(size=(3000, 128)))[order]
    monkeypatch.setattr(matching, "DENSE_PAIRS", 1 << 20)
    monkeypatch.setattr(matching, "_BLOCK", 256)
    tracemalloc.start()
    found = match_features(first, second)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (order[found.partner[:1500]] == np.arange(1500)).all()
    assert not found.found[1500:].any()
    assert peak < 3000 * 3000 * 8 / 3


def test_many_candidates_are_cut_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first = np.ones(20) * 3 + rng.normal(size=(200, 20))  # all cosines reach the threshold
    order = rng.permutation(200)
    monkeypatch.setattr(matching, "DENSE_PAIRS", 0)
    monkeypatch.setattr(matching, "CANDIDATES", 8)
    found = match_features(first, first[order])
    assert (order[found.partner] == np.arange(200)).all()
