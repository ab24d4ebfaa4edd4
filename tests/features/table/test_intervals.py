"""Bootstrap intervals of class counts against the tables of resampled stores."""

from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
import torch

from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.collect import collect
from mechprobe.features.table.feature_table import FeatureTable, feature_table
from mechprobe.features.table.intervals import sequence_groups, sequence_starts
from sae_training import Crosscoder
from tests.features.table.test_feature_table import planted
from tests.small_dictionaries import MemoryStore, make_store

CONFIG = FeaturesConfig(batch_rows=64, bootstrap_groups=2, bootstrap_draws=300)


def changing(n_rows: int = 600) -> tuple[Crosscoder, MemoryStore]:
    """A planted family; in the second half of the rows, base has part of two features that it lacks in the first half."""
    crosscoder, store, classes = planted(n_rows=n_rows)
    acts = crosscoder.encode(store.x).detach()
    for feature, share in ((classes.index("sft+rl"), 0.35), (classes.index("sft-only"), 0.6)):
        direction = crosscoder.W_dec[feature, 1].detach()
        half = slice(n_rows // 2, None)
        store.x[half, 0] += share * acts[half, feature, None] * direction
    return crosscoder, store


def drawn(store: MemoryStore, groups: list[range], chosen: tuple[int, ...]) -> MemoryStore:
    return make_store(torch.cat([store.x[groups[number].start : groups[number].stop] for number in chosen]))


def test_every_draw_is_the_table_of_the_rows_drawn() -> None:
    """With two groups a draw is (A, A), (A, B) or (B, B), so the interval spans the counts of these three tables."""
    crosscoder, store = changing()
    whole = feature_table(crosscoder, store, CONFIG)
    groups = sequence_groups(store.tokens.sample, range(store.n_rows), 2)
    assert [len(group) for group in groups] == [300, 300]
    tables = [
        feature_table(crosscoder, drawn(store, groups, pair), CONFIG).summary().class_counts
        for pair in combinations_with_replacement((0, 1), 2)
    ]
    assert whole.intervals is not None
    moved = 0
    for name, interval in whole.intervals.sequences.items():
        counts = [table.get(name, 0) for table in tables]
        assert interval.value == whole.summary().class_counts.get(name, 0) == counts[1]
        assert (interval.low, interval.high, interval.n) == (min(counts), max(counts), 60), name
        moved += min(counts) < max(counts)
    assert moved >= 2  # the planted change shows


def test_drawing_features_again_widens_the_interval() -> None:
    crosscoder, store = changing()
    intervals = feature_table(crosscoder, store, CONFIG).intervals
    assert intervals is not None
    for name, narrow in intervals.sequences.items():
        wide = intervals.latents[name]
        assert wide.low <= narrow.low
        assert wide.high >= narrow.high
    n, p = len(crosscoder.decoder), intervals.sequences["shared"].value / len(crosscoder.decoder)
    spread = 1.96 * np.sqrt(n * p * (1 - p))  # of a binomial count, because shared features do not depend on sequences
    wide = intervals.latents["shared"]
    assert wide.high - wide.low == pytest.approx(2 * spread, abs=2)


def test_groups_are_whole_sequences_and_cover_the_rows() -> None:
    rng = np.random.default_rng(0)
    sample = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    for rows in (range(len(sample)), range(13, len(sample) - 5)):
        for n_groups in (1, 2, 7, 39, 200):
            groups = sequence_groups(sample, rows, n_groups)
            assert [row for group in groups for row in group] == list(rows)
            assert len(groups) <= min(n_groups, len(np.unique(sample[rows.start : rows.stop])))
            for group in groups[1:]:
                assert sample[group.start] != sample[group.start - 1]
    assert sequence_starts(sample, range(len(sample))).tolist() == np.unique(sample, return_index=True)[1].tolist()


def test_the_seed_decides_and_zero_draws_leave_them_out(tmp_path: Path) -> None:
    crosscoder, store = changing()
    config = CONFIG.replace(bootstrap_groups=20, bootstrap_draws=30)
    first, again = (feature_table(crosscoder, store, config) for _ in range(2))
    assert first.intervals == again.intervals
    first.save(tmp_path)
    assert FeatureTable.load(tmp_path).intervals == first.intervals
    without = feature_table(crosscoder, store, config.replace(bootstrap_draws=0))
    assert without.intervals is None
    assert without.summary().class_intervals is None
    assert without.classes == first.classes


def test_evidence_of_parts_merges_into_that_of_the_whole() -> None:
    crosscoder, store = changing()
    config = CONFIG.replace(bootstrap_groups=3)
    parts = [collect(crosscoder, store, config, rows=rows) for rows in (range(300), range(300, 600))]
    merged = parts[0].merge(parts[1]).evidence
    whole = collect(crosscoder, store, config).evidence
    assert merged is not None
    assert whole is not None
    assert merged.n_sequences == whole.n_sequences == 60
    assert torch.allclose(merged.dot_error.sum(0), whole.dot_error.sum(0))
    with torch.no_grad():
        crosscoder.decoder[0, : crosscoder.config.widths[0]] = 0  # one more claim
    other = collect(crosscoder, store, config)
    with pytest.raises(ValueError, match="different features"):
        parts[0].merge(other)
