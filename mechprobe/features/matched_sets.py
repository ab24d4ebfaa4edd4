"""Random sets that match a selection feature by feature, and how well they do.

Features that are chosen are extreme, so a set drawn anywhere in the dictionary would be weaker before anything is edited.
Matched are the logarithms of density, decoder norm and write (mean activation where active times decoder norm: what an
ablation takes away), each in standard deviations over the live features. All of it is ours; the words are those of matching in
observational studies (Stuart 2010).

Every set is one optimal assignment (scipy's ``linear_sum_assignment``) of the selection to the live features outside it:
the smallest sum of squared distances, plus a price for every earlier set that a feature stands in, among a random part of
the dictionary. The price spreads the sets over the dictionary where it has features to spare; the random part makes sets
draws and not one best answer. Optimal pairs of extreme features all err to one side, so the targets are shifted
by what the mean of the set misses until the means agree: the shift is the Lagrange multiplier of the constraint of equal
means, followed by subgradient steps.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.errors import SelectionError
from mechprobe.features.selection import Values

COVARIATES = ("density", "decoder_norm", "write")
REUSE_PRICE = 0.25
"""Squared distance that one earlier use is worth."""
OFFERED = 0.5
"""Share of the dictionary, drawn anew, that one set may take."""
TOLERANCE = 0.02
"""Difference of means, in standard deviations, at which the shift stops."""
MAX_SHIFTS = 12
_BLOCK = 128


def matched_random_sets(
    ids: Sequence[int],
    *,
    density: Values,
    decoder_norm: Values,
    mean_act: Values,
    n_sets: int,
    seed: int,
    exclude: Sequence[int] = (),
) -> list[list[int]]:
    """Random sets whose i-th feature is the match of the i-th of ``ids``.

    Args:
        ids: The set to match; none of its features enters a random set.
        density: ``[d_sae]``, share of tokens on which each feature is active; 0 = dead.
        decoder_norm: ``[d_sae]``, summed over models.
        mean_act: ``[d_sae]``, mean activation where active.
        n_sets: Sets.
        seed: Of the parts of the dictionary that are offered.
        exclude: Further features that may not enter.

    Raises:
        SelectionError: Fewer live features are left than the set has.
    """
    place, live = _standardized(density, decoder_norm, mean_act)
    live[list({*ids, *exclude})] = False
    pool = np.flatnonzero(live)
    if len(pool) < len(ids):
        raise SelectionError(
            f"A random set of {len(ids)} features cannot be drawn: {len(pool)} live features are outside "
            "the selection; select fewer, or train a larger dictionary."
        )
    rng = np.random.default_rng(seed)
    target, around = place[list(ids)], place[pool]
    uses = np.zeros(len(pool), dtype=np.int64)
    sets = []
    for _ in range(n_sets):
        offered = rng.permutation(len(pool))[: max(len(ids), round(OFFERED * len(pool)))]
        offered.sort()
        drawn = offered[_balanced(target, around[offered], REUSE_PRICE * uses[offered])]
        uses[drawn] += 1
        sets.append(pool[drawn].tolist())
    rng.shuffle(sets)  # later sets pay for earlier ones; a head of them must be as good as any other
    return sets


def _standardized(
    density: Values, decoder_norm: Values, mean_act: Values
) -> tuple[Float[ndarray, "d_sae covariate"], Bool[ndarray, " d_sae"]]:
    """Logarithms of the covariates, mean 0 and standard deviation 1 over the live features; and which are live."""
    live = (density > 0) & (decoder_norm > 0)
    columns = (density, decoder_norm, decoder_norm * mean_act)
    logs = np.stack([np.log(np.maximum(values, 1e-12)) for values in columns], axis=1)
    if not live.any():
        return logs, live
    return (logs - logs[live].mean(axis=0)) / np.maximum(logs[live].std(axis=0), 1e-12), live


def _balanced(
    target: Float[ndarray, "chosen covariate"], pool: Float[ndarray, "pool covariate"], price: Float[ndarray, " pool"]
) -> Int[ndarray, " chosen"]:
    """The assignment whose means come nearest to the target's, over a few shifts of the target."""
    shift, best, nearest = np.zeros(target.shape[1]), None, np.inf
    for _ in range(MAX_SHIFTS):
        drawn = _assigned(target + shift, pool, price)
        missed = (target - pool[drawn]).mean(axis=0) if len(drawn) else np.zeros(target.shape[1])
        size = float(np.abs(missed).max())
        if size < nearest:
            best, nearest = drawn, size
        if size <= TOLERANCE:
            break
        shift = shift + missed
    assert best is not None
    return best


def _assigned(
    target: Float[ndarray, "chosen covariate"], pool: Float[ndarray, "pool covariate"], price: Float[ndarray, " pool"]
) -> Int[ndarray, " chosen"]:
    """For every target another place of the pool, the sum of squared distances and prices smallest.

    Of n targets each needs only its n cheapest places, for the others can take n − 1 of them at most: the assignment among
    these is the best of all. Beyond `_BLOCK` targets they are assigned block by block, so that time grows as their number.
    """
    from scipy.optimize import linear_sum_assignment

    drawn = np.empty(len(target), dtype=np.int64)
    price = price.copy()
    for start in range(0, len(target), _BLOCK):
        block = target[start : start + _BLOCK]
        cost = (block**2).sum(1)[:, None] + (pool**2).sum(1) - 2 * block @ pool.T + price
        n = len(block)
        columns = np.arange(len(pool))
        if n < len(pool):
            columns = np.unique(np.argpartition(cost, n - 1, axis=1)[:, :n])
        _, chosen = linear_sum_assignment(np.where(np.isfinite(cost), cost, 1e18)[:, columns])
        drawn[start : start + n] = columns[chosen]
        price[columns[chosen]] = np.inf
    return drawn


def match_quality(
    ids: Sequence[int],
    sets: Sequence[Sequence[int]],
    *,
    density: Values,
    decoder_norm: Values,
    mean_act: Values,
    caliper: float,
) -> dict[str, Any]:
    """How near random sets come to the selection, and how different they are from each other.

    ``difference`` is the mean, over sets, of the set's mean logarithm minus the selection's, in standard deviations over the
    live features; ``worst_set`` the largest of them by size. ``beyond_caliper`` names the covariates whose difference
    exceeds ``caliper``. Empty for no set or an empty selection.

    Args:
        ids: The selection.
        sets: Its random sets, in the order of its features.
        density: ``[d_sae]``.
        decoder_norm: ``[d_sae]``.
        mean_act: ``[d_sae]``.
        caliper: In standard deviations.
    """
    if not sets or not ids:
        return {}
    place, live = _standardized(density, decoder_norm, mean_act)
    raw = dict(zip(COVARIATES, (density, decoder_norm, decoder_norm * mean_act), strict=True))
    chosen, drawn = np.asarray(ids), np.asarray(sets)
    pairs = place[drawn] - place[chosen]  # set, feature, covariate
    means = pairs.mean(axis=1)
    distance = np.sqrt((pairs**2).sum(axis=2))
    worst = np.unravel_index(int(distance.argmax()), distance.shape)
    covariates = {
        name: {
            "selected": float(raw[name][chosen].mean()),
            "random": float(raw[name][drawn].mean()),
            "difference": float(means[:, column].mean()),
            "worst_set": float(means[np.abs(means[:, column]).argmax(), column]),
        }
        for column, name in enumerate(COVARIATES)
    }
    counts = np.unique(drawn, return_counts=True)[1]
    shared = [len(set(a) & set(b)) / len(ids) for a, b in combinations(sets, 2)]
    return {
        "n_sets": len(sets),
        "n_features": len(ids),
        "n_pool": int(live.sum() - live[chosen].sum()),
        "covariates": covariates,
        "mean_pair_distance": float(distance.mean()),
        "worst_pair": {
            "feature": int(chosen[worst[1]]),
            "random": int(drawn[worst]),
            "distance": float(distance[worst]),
        },
        "n_distinct": len(counts),
        "most_used": int(counts.max()),
        "mean_overlap": float(np.mean(shared)) if shared else float("nan"),
        "caliper": caliper,
        "beyond_caliper": [name for name, row in covariates.items() if abs(row["difference"]) > caliper],
    }
