"""Random rows of every quantile are uniform, reproducible, independent of the batches, and bounded in number."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechprobe.features.config import FeaturesConfig
from mechprobe.features.examples.quantiles import RandomRows, collect_random_rows
from sae_training import Crosscoder
from tests.small_dictionaries import MemoryStore


def activations(n: int, features: int = 3, seed: int = 0) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).normal(size=(n, features)), 0)


def read(acts: np.ndarray, cuts: list[int], *, size: int = 16, seed: int = 0) -> RandomRows:
    sample = RandomRows.empty((7, 2, 9), seed=seed, size=size)
    for start, stop in zip([0, *cuts], [*cuts, len(acts)], strict=True):
        sample.update(acts[start:stop], start)
    return sample


def same(a: RandomRows, b: RandomRows) -> bool:
    names = ("n_active", "index", "row", "value", "priority")
    return a.n_rows == b.n_rows and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=5))
def test_batches_do_not_matter(cuts: list[int]) -> None:
    acts = activations(300)
    assert same(read(acts, sorted(cuts)), read(acts, []))


def test_parts_merge_into_the_whole() -> None:
    acts = activations(400)
    first, second = RandomRows.empty((7, 2, 9), size=16), RandomRows.empty((7, 2, 9), size=16)
    first.update(acts[:150], 0)
    second.update(acts[150:], 150)
    whole = read(acts, [])
    assert same(first.merge(second), whole)
    assert same(second.merge(first), whole)
    with pytest.raises(ValueError, match="cannot merge"):
        first.merge(RandomRows.empty((7, 2, 9), seed=1, size=16))


def test_memory_is_bounded_and_small_features_are_kept_whole() -> None:
    acts = activations(5000)
    acts[:, 1] = 0
    acts[[3, 99, 1234], 1] = (2.0, 1.0, 3.0)
    sample = read(acts, list(range(100, 5000, 100)))
    assert np.bincount(sample.index).tolist() == [16, 3, 16]
    assert sample.n_active.tolist() == (acts > 0).sum(axis=0).tolist()
    assert [(part.low, part.high) for part in sample.quantiles(2, 8)] == [(0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)]
    parts = sample.quantiles(2, 3)
    assert [part.rows for part in parts] == [(99,), (3,), (1234,)]
    assert [(part.smallest, part.largest) for part in parts] == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]


def test_quantiles_are_those_of_the_activations() -> None:
    acts = activations(20_000)
    sample = read(acts, [], size=1024)
    active = np.sort(acts[acts[:, 0] > 0, 0])
    for part in sample.quantiles(7, 4):
        share = np.searchsorted(active, [part.smallest, part.largest]) / len(active)
        np.testing.assert_allclose(share, [part.low, part.high], atol=0.05)  # three standard errors
        assert all(part.smallest <= acts[row, 0] <= part.largest for row in part.rows)
    rows = [row for part in sample.quantiles(7, 4) for row in part.rows]
    assert len(set(rows)) == len(rows) == 1024


def test_every_active_row_is_as_likely_as_any_other() -> None:
    acts = np.ones((64, 3))
    counts = np.zeros((64, 3))
    for seed in range(600):
        sample = read(acts, [], size=8, seed=seed)
        np.add.at(counts, (sample.row, sample.index), 1)
    expected = 600 * 8 / 64
    chi_square = ((counts - expected) ** 2 / expected).sum(axis=0)
    assert (chi_square < 110).all()  # 63 degrees of freedom, less the fixed total: p about 1e-4


def test_features_and_seeds_draw_differently() -> None:
    acts = np.ones((500, 3))
    sample, other = read(acts, []), read(acts, [], seed=1)
    drawn = [set(sample.row[sample.index == place]) for place in range(3)]
    assert len(drawn[0] & drawn[1]) < 8
    assert len(drawn[0] & set(other.row[other.index == 0])) < 8


def test_a_store_is_read_to_its_limit(crosscoder: Crosscoder, store: MemoryStore) -> None:
    config = FeaturesConfig(batch_rows=32, quantile_rows=150)
    sample = collect_random_rows(crosscoder, store, [4, 1], config)
    acts = crosscoder.encode(store.x[:150]).detach()[:, [4, 1]]
    assert sample.n_rows == 150
    assert sample.n_active.tolist() == (acts > 0).sum(dim=0).tolist()
    for place in range(2):
        rows = sample.row[sample.index == place]
        np.testing.assert_allclose(sample.value[sample.index == place], acts[rows, place].numpy())
