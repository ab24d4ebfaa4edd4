"""Matched random sets: against brute force, by hand, and for dictionaries that can and cannot provide matches."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import linear_sum_assignment

from mechprobe.errors import ConfigError, SelectionError
from mechprobe.selection import controls as matched_sets
from mechprobe.selection.config import MAX_SETS, SelectConfig
from mechprobe.selection.controls import ControlMatch, Covariates, effective_draws, match_quality, matched_random_sets


def dictionary(n: int, seed: int = 0) -> Covariates:
    """Covariates of a dictionary: wide densities, correlated norms and activations."""
    rng = np.random.default_rng(seed)
    density = 10 ** rng.uniform(-4, -0.5, n)
    norm = np.exp(0.3 * rng.standard_normal(n))
    return Covariates(density, norm, norm * np.exp(0.5 * rng.standard_normal(n)))


def quality(ids: list[int], sets: list[list[int]], covariates: Covariates) -> ControlMatch:
    found = match_quality(ids, sets, covariates)
    assert found is not None
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 12))
def test_random_sets_are_disjoint_from_the_selection_and_seeded(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    density = rng.uniform(0, 0.5, 60) * (rng.random(60) > 0.2)
    norm, act = rng.uniform(0.1, 3, (2, 60))
    ids = [int(k) for k in rng.choice(np.flatnonzero(density > 0), n, replace=False)]
    covariates = Covariates(density, norm, act)
    sets = matched_random_sets(ids, covariates, n_sets=3, seed=seed)
    assert sets == matched_random_sets(ids, covariates, n_sets=3, seed=seed)
    for drawn in sets:
        assert len(set(drawn)) == n
        assert not set(drawn) & set(ids)
        assert (density[drawn] > 0).all()


def test_sets_match_within_the_caliper_and_hardly_share_features() -> None:
    given = dictionary(4000)
    norms = given.contribution_norm
    rng = np.random.default_rng(1)
    common = np.flatnonzero((norms > np.quantile(norms, 0.7)) & (given.density > 0.01))
    ids = [int(k) for k in rng.choice(common, 50, replace=False)]
    sets = matched_random_sets(ids, given, n_sets=6, seed=3)
    found = quality(ids, sets, given)
    assert found.beyond_caliper == ()
    assert max(abs(row.difference) for row in found.covariates.values()) < 0.05
    assert max(abs(row.at_best) for row in found.covariates.values()) == 0
    anywhere = [[int(k) for k in rng.choice(4000, 50, replace=False)] for _ in range(6)]
    assert "write" in quality(ids, anywhere, given).beyond_caliper
    assert found.n_distinct == 300
    assert found.mean_overlap == 0


def test_sets_share_no_feature_where_the_dictionary_allows_it() -> None:
    given = dictionary(1100)
    ids = [int(k) for k in np.random.default_rng(1).choice(1100, 50, replace=False)]
    found = quality(ids, matched_random_sets(ids, given, n_sets=20, seed=0), given)
    assert (found.most_used, found.mean_overlap, found.n_effective) == (1, 0.0, 20.0)


def test_a_small_dictionary_uses_every_feature_equally_often() -> None:
    """The sets of the reviewed lab shared 62 % of their features and were worth 4 independent draws of 20."""
    given = dictionary(913)
    ids = [int(k) for k in np.argsort(-given.contribution_norm)[:50]]
    twenty = quality(ids, matched_random_sets(ids, given, n_sets=20, seed=0), given)
    assert twenty.most_used == 2
    assert twenty.mean_overlap < 0.03
    assert twenty.n_effective > 17
    many = quality(ids, matched_random_sets(ids, given, n_sets=99, seed=0), given)
    assert many.most_used <= 7
    assert many.n_effective > 60


def test_effective_draws_by_hand_and_by_simulation() -> None:
    assert effective_draws([]) == 0
    assert effective_draws([[1, 2], [3, 4]]) == 2
    assert effective_draws([[1, 2]] * 9) == pytest.approx(1.0, abs=0.1)
    rng = np.random.default_rng(0)
    sets = [rng.choice(80, 50, replace=False).tolist() for _ in range(20)]
    member = np.zeros((20, 80))
    np.put_along_axis(member, np.asarray(sets), 1.0, axis=1)
    effects = member @ rng.standard_normal((80, 20000))
    others = rng.standard_normal((50, 20000)).sum(axis=0)
    beats = float((others > effects.max(axis=0)).mean())
    assert 1 / (1 + effective_draws(sets)) == pytest.approx(beats, abs=0.015)
    assert beats > 0.15


def test_sets_of_transplants_match_what_a_transplant_writes() -> None:
    """Where J has nothing to do with the contribution norm, a match in the one is none in the other."""
    rng = np.random.default_rng(0)
    plain = dictionary(4000)
    j = np.exp(1.5 * rng.standard_normal(4000))
    given = Covariates(plain.density, plain.decoder_norm, plain.mean_act, j)
    ids = [
        int(k)
        for k in rng.choice(np.flatnonzero((j > np.quantile(j, 0.8)) & (plain.density > 0.01)), 40, replace=False)
    ]
    by_j = quality(ids, matched_random_sets(ids, given, n_sets=5, seed=0), given)
    assert abs(by_j.covariates["difference"].difference) < 0.05
    by_norm = quality(ids, matched_random_sets(ids, plain, n_sets=5, seed=0), given)
    assert by_norm.covariates["difference"].difference < -0.8


def test_features_without_their_like_are_reported() -> None:
    given = dictionary(400)
    norms = given.contribution_norm
    ids = [int(k) for k in np.argsort(-norms)[:40]]
    found = quality(ids, matched_random_sets(ids, given, n_sets=5, seed=0), given)
    assert "write" in found.beyond_caliper
    assert found.covariates["write"].random < found.covariates["write"].selected
    assert found.covariates["write"].difference <= found.covariates["write"].at_best < -0.25
    highest = np.log(np.sort(np.delete(norms, ids))[-40:]).mean() - np.log(norms[ids]).mean()
    assert found.covariates["write"].at_best == pytest.approx(highest / np.log(norms).std())


def test_the_assignment_is_the_best_of_all_orders() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        target, pool, price = rng.standard_normal((3, 2)), rng.standard_normal((6, 2)), rng.random(6)
        cost = ((target[:, None] - pool[None]) ** 2).sum(-1) + price
        best = min(sum(cost[i, j] for i, j in enumerate(order)) for order in permutations(range(6), 3))
        drawn = matched_sets._assigned(target, pool, price)
        assert sum(cost[i, j] for i, j in enumerate(drawn)) == pytest.approx(best)


def test_leaving_far_features_out_changes_no_assignment() -> None:
    rng = np.random.default_rng(5)
    target, pool, price = rng.standard_normal((40, 3)), rng.standard_normal((500, 3)), rng.random(500)
    cost = ((target[:, None] - pool[None]) ** 2).sum(-1) + price
    rows, columns = linear_sum_assignment(cost)
    drawn = matched_sets._assigned(target, pool, price)
    assert cost[np.arange(40), drawn].sum() == pytest.approx(cost[rows, columns].sum())


def test_many_features_are_assigned_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matched_sets, "_BLOCK", 7)
    given = dictionary(80)
    ids = list(range(30))
    for drawn in matched_random_sets(ids, given, n_sets=4, seed=0):
        assert len(set(drawn)) == 30
        assert not set(drawn) & set(ids)


def test_a_pool_of_the_same_size_is_taken_whole() -> None:
    given = dictionary(20)
    for drawn in matched_random_sets(list(range(10)), given, n_sets=3, seed=0):
        assert sorted(drawn) == list(range(10, 20))


def test_quality_by_hand() -> None:
    """Two chosen features, two live ones outside; logs in powers of e, so that the arithmetic can be followed."""
    e = np.e
    given = Covariates(
        density=np.array([e**-1, e**-1, e**-3, e**-3, 0.0]),
        decoder_norm=np.array([1.0, 1.0, 1.0, 1.0, 1.0]),
        mean_act=np.array([e, e, e, e**-1, 1.0]),
    )
    found = quality([0, 1], [[2, 3], [3, 2]], given)
    # log density −1, −1, −3, −3 over the live: SD 1, so each pair is 2 SD below; the norm has no spread at all
    assert found.covariates["density"].difference == pytest.approx(-2.0)
    assert found.covariates["decoder_norm"].difference == 0
    # log contribution norm 1, 1, 1, −1: mean ½, SD √¾; the set's mean is 0 against 1
    assert found.covariates["write"].difference == pytest.approx(-1 / np.sqrt(0.75))
    assert found.covariates["write"].selected == pytest.approx(e)
    assert found.covariates["write"].random == pytest.approx((e + 1 / e) / 2)
    assert found.worst_pair.distance == pytest.approx(np.sqrt(4 + 4 / 0.75))
    assert found.worst_pair.random == 3
    assert (found.n_distinct, found.most_used, found.n_pool) == (2, 2, 2)
    assert found.mean_overlap == 1.0
    assert found.beyond_caliper == ("density", "write")
    assert match_quality([], [[]], given) is None
    assert match_quality([0], [], given) is None


def test_too_few_features_for_controls() -> None:
    with pytest.raises(SelectionError, match="3 live features are outside"):
        matched_random_sets([0, 1, 2, 3], Covariates(*np.ones((3, 7))), n_sets=1, seed=0)


def test_more_sets_than_can_be_matched_are_refused() -> None:
    with pytest.raises(SelectionError, match="1,001 random sets"):
        matched_random_sets([0], dictionary(20), n_sets=MAX_SETS + 1, seed=0)
    with pytest.raises(ConfigError, match="n_controls"):
        SelectConfig(n_controls=MAX_SETS + 1)
