"""Sums by cell, metrics with their intervals, and tokens that change, on numbers that can be counted by hand."""

import math

import numpy as np
import pytest
import torch

from mechprobe.drift import PositionDivergences, divergences
from mechprobe.drift.divergence.columns import BUCKETS, CLASSES, COLUMNS, RANK_BINS
from mechprobe.drift.divergence.metrics import METRICS, metrics_in, metrics_of
from mechprobe.drift.divergence.sums import CellSums, TokenCounts, arrays_of, of_arrays
from mechprobe.drift.divergence.table import divergence_rows
from mechprobe.statistics import cluster_draws

DIGIT, OTHER = CLASSES.index("digits"), CLASSES.index("other")
FIRST, ANSWER = BUCKETS.index("first"), BUCKETS.index("answer")


def found_of(n: int = 6, n_ids: int = 40, seed: int = 0) -> tuple[PositionDivergences, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    base, target = torch.randn(n, n_ids, generator=generator), torch.randint(n_ids, (n,), generator=generator)
    return divergences(base + torch.randn(n, n_ids, generator=generator), base, target, top=3), target.numpy()


def cells_of(found: PositionDivergences) -> CellSums:
    return CellSums.of(
        found, np.array([4, 4, 4, 9, 9, 9]), np.array([DIGIT, DIGIT, OTHER] * 2), np.array([FIRST, ANSWER, ANSWER] * 2)
    )


def test_sums_of_cells() -> None:
    found, _ = found_of()
    cells = cells_of(found)
    assert cells.keys.tolist() == [
        [s, c, b] for s in (4, 9) for c, b in ((DIGIT, FIRST), (DIGIT, ANSWER), (OTHER, ANSWER))
    ]
    np.testing.assert_allclose(cells.sums[:, COLUMNS.index("kl")], found.kl.numpy())
    bins = cells.sums[:, -len(RANK_BINS) :]
    assert bins.sum(axis=1).tolist() == [1.0] * 6
    log_ratio = (found.log_prob - found.log_prob_base).numpy()
    np.testing.assert_allclose(cells.sums[:, COLUMNS.index("log_ratio")], log_ratio)
    ratio = np.exp(-log_ratio)
    np.testing.assert_allclose(cells.sums[:, COLUMNS.index("k3")], ratio - 1 - np.log(ratio), atol=1e-12)
    half = [
        CellSums.of(
            found.only(torch.arange(6) < 3),
            *(np.array(x) for x in ([4] * 3, [DIGIT, DIGIT, OTHER], [FIRST, ANSWER, ANSWER])),
        )
    ]
    half.append(
        CellSums.of(
            found.only(torch.arange(6) >= 3),
            *(np.array(x) for x in ([9] * 3, [DIGIT, DIGIT, OTHER], [FIRST, ANSWER, ANSWER])),
        )
    )
    joined = CellSums.joined(half[::-1])
    assert joined.keys.tolist() == cells.keys.tolist()
    np.testing.assert_array_equal(joined.sums, cells.sums)


def test_metrics_by_hand() -> None:
    sums = np.zeros(len(COLUMNS))
    column = {name: index for index, name in enumerate(COLUMNS)}
    sums[column["n"]], sums[column["kl"]], sums[column["entropy"]], sums[column["entropy_base"]] = 4, 2.0, 6.0, 8.0
    for low, count in ((1, 1), (2, 1), (11, 1), (1001, 1)):
        sums[column[f"rank_base_{low}"]] = count
    found = {name: value[0] for name, value in metrics_of(sums[None]).items()}
    assert set(found) == set(METRICS)
    assert found["kl"] == 0.5
    assert found["entropy_change"] == -0.5
    assert (found["rank_base_over_1"], found["rank_base_over_10"], found["rank_base_median"]) == (0.75, 0.5, 2.0)
    assert math.isnan(metrics_of(np.zeros((1, len(COLUMNS))))["kl"][0])
    assert "kl_mc" in metrics_in("own")
    assert "kl_mc" not in metrics_in("base")
    assert "log_ratio" in metrics_in("prompt")


def test_rows_hold_every_breakdown_with_the_sequence_as_unit() -> None:
    found, _ = found_of()
    cells = cells_of(found)
    entry = {"id": "", "prompt_id": "", "skill": "calculation", "domain": "", "writer": "rl", "temperature": 1.0}
    sequences = {4: {**entry, "task": "x"}, 9: {**entry, "task": "y"}}
    rows = divergence_rows("rl", "base", cells.keys, cells.sums, sequences, draws=200, seed=0)
    kl = {(row.by, row.group): row for row in rows if row.metric == "kl"}
    assert set(kl) == {
        ("all", "all"), ("task", "x"), ("task", "y"), ("skill", "calculation"), ("token_class", "digits"),
        ("token_class", "other"), ("bucket", "first"), ("bucket", "answer"),
    }  # fmt: skip
    whole = kl["all", "all"]
    assert (whole.source, whole.temperature, whole.n, whole.n_sequences) == ("own", 1.0, 6, 2)
    values = found.kl.numpy()
    assert whole.value == pytest.approx(values.mean())
    assert kl["task", "x"].value == pytest.approx(values[:3].mean())
    assert kl["token_class", "digits"].value == pytest.approx(values[[0, 1, 3, 4]].mean())
    assert math.isnan(kl["task", "x"].low)  # one sequence has no interval
    means = sorted([values[:3].mean(), values[3:].mean()])
    assert (whole.low, whole.high) == pytest.approx(tuple(means))  # draws of 2 sequences reach both extremes
    assert repr(rows) == repr(divergence_rows("rl", "base", cells.keys, cells.sums, sequences, draws=200, seed=0))


def test_intervals_cover_the_mean_over_sequences() -> None:
    """Positions of a sequence are equal here, so intervals over positions would cover far less."""
    rng, covered = np.random.default_rng(0), 0
    columns = np.zeros((40 * 5, len(COLUMNS)))
    columns[:, 0] = 1
    keys = np.stack([np.repeat(np.arange(40), 5), np.tile(np.arange(5), 40), np.full(200, ANSWER)], axis=1)
    entry = {"id": "", "prompt_id": "", "task": "", "skill": "", "domain": "", "writer": "", "temperature": None}
    for _ in range(60):
        columns[:, COLUMNS.index("kl")] = np.repeat(rng.normal(1.0, 1.0, 40), 5)
        rows = divergence_rows("rl", "base", keys, columns, dict.fromkeys(range(40), entry), draws=100, seed=1)
        row = next(row for row in rows if row.metric == "kl")
        covered += row.low <= 1.0 <= row.high
    assert 51 <= covered <= 60


def test_draws_of_clusters() -> None:
    weights = cluster_draws(np.array([7, 7, 3]), draws=50, seed=0)
    assert weights.shape == (50, 3)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] + weights[:, 2] == 2).all()
    assert cluster_draws(np.array([1, 1]), draws=50, seed=0).shape == (0, 2)


def test_tokens_that_change() -> None:
    found, target = found_of()
    counts = TokenCounts.of(found, target)
    ids = found.raised_ids.numpy().ravel().tolist()
    token, count, mean = counts.leading("raised", 1)[0]
    assert count == max(ids.count(each) for each in ids) == ids.count(token)
    assert mean == pytest.approx(found.raised.numpy().ravel()[np.array(ids) == token].mean())
    shifted = target[found.rank_base.numpy() > 1]
    assert sum(count for _, count, _ in counts.leading("shifted", 99)) == len(shifted)
    halves = [
        TokenCounts.of(found.only(torch.arange(6) % 2 == side), target[np.arange(6) % 2 == side]) for side in (0, 1)
    ]
    joined = TokenCounts.joined(halves)
    np.testing.assert_array_equal(joined.keys, counts.keys)
    np.testing.assert_allclose(joined.counts, counts.counts)
    cells = cells_of(found)
    again, tokens = of_arrays(arrays_of(cells, {"own@1": counts}))
    np.testing.assert_array_equal(again.sums, cells.sums)
    np.testing.assert_array_equal(tokens["own@1"].keys, counts.keys)
