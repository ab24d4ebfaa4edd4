"""Random sets that match a selection feature by feature, and how well they do.

Features that are chosen are extreme, so a set drawn anywhere in the dictionary would be weaker before anything is edited.
Matched are the logarithms of density, decoder norm and write (mean activation where active times decoder norm: what an
ablation takes away), each in standard deviations over the live features. All of it is ours; the words are those of matching in
observational studies (Stuart 2010).

Every set is one optimal assignment (scipy's ``linear_sum_assignment``) of the selection to the live features outside it:
the smallest sum of squared distances and prices. A feature's price is `REUSE_PRICE` for every earlier set that it stands in, which
spreads the sets over the dictionary where it has features to spare, and a random amount of mean `CHANCE`, drawn anew for
every set: sets are draws and not one best answer. Optimal pairs of extreme features all err to one side, so the targets are
shifted by what the mean of the set misses until the means agree: the shift is the Lagrange multiplier of the constraint
of equal means, followed by subgradient steps. Where the dictionary has no such features it would grow without end and every
set would be the same few extreme features; it ends at `MAX_SHIFT`.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.errors import SelectionError
from mechprobe.selection.rules import Values

COVARIATES = ("density", "decoder_norm", "write")
REUSE_PRICE = 0.25
"""Squared distance that one earlier use is worth."""
CHANCE = 0.5
"""Mean of the random price, a squared distance; exponentially distributed."""
TOLERANCE = 0.02
"""Difference of means, in standard deviations, at which the shift stops."""
MAX_SHIFT = 1.5
"""Largest shift of a covariate, in standard deviations."""
MAX_ROUNDS = 6
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
        seed: Of the random prices.
        exclude: Further features that may not enter.

    Raises:
        SelectionError: Fewer live features are left than the set has.
    """
    if n_sets == 0:
        return []
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
        price = REUSE_PRICE * uses + CHANCE * rng.standard_exponential(len(pool))
        drawn = _balanced(target, around, price)
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
    shift, best, nearest = np.zeros(target.shape[1]), np.arange(len(target)), np.inf
    for _ in range(MAX_ROUNDS):
        drawn = _assigned(target + shift, pool, price)
        missed = (target - pool[drawn]).mean(axis=0) if len(drawn) else np.zeros(target.shape[1])
        size = float(np.abs(missed).max())
        if size < nearest:
            best, nearest = drawn, size
        further = np.clip(shift + missed, -MAX_SHIFT, MAX_SHIFT)
        if size <= TOLERANCE or np.array_equal(further, shift):
            break
        shift = further
    return best


def _assigned(
    target: Float[ndarray, "chosen covariate"], pool: Float[ndarray, "pool covariate"], price: Float[ndarray, " pool"]
) -> Int[ndarray, " chosen"]:
    """For every target another place of the pool, the sum of squared distances and prices smallest.

    Of n targets each needs only its n cheapest places, for the others can take n − 1 of them at most: the assignment among
    these is the best of all. Beyond `_BLOCK` targets they are assigned block by block, so that time grows as their number.
    """
    from scipy.optimize import linear_sum_assignment

    drawn, taken = np.empty(len(target), dtype=np.int64), np.zeros(len(pool), dtype=bool)
    size = (pool**2).sum(1) + price
    for start in range(0, len(target), _BLOCK):
        block = target[start : start + _BLOCK]
        n, free = len(block), np.flatnonzero(~taken)
        cost = (block**2).sum(1)[:, None] + size[free] - 2 * block @ pool[free].T
        near = np.arange(len(free))
        if n < len(free):
            last = np.partition(cost, n - 1, axis=1)[:, n - 1, None]
            near = np.flatnonzero((cost <= last).any(axis=0))
        columns = free[near[linear_sum_assignment(cost[:, near])[1]]]
        drawn[start : start + n] = columns
        taken[columns] = True
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
    live features; ``worst_set`` the largest of them by size; ``at_best`` the smallest that any set of as many other features
    could have in this covariate alone. ``beyond_caliper`` names the covariates whose difference exceeds ``caliper``. Empty for
    no set or an empty selection.

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
    others = np.flatnonzero(live & ~np.isin(np.arange(len(live)), chosen))
    worst = np.unravel_index(int(distance.argmax()), distance.shape)
    covariates = {
        name: {
            "selected": float(raw[name][chosen].mean()),
            "random": float(raw[name][drawn].mean()),
            "difference": float(means[:, column].mean()),
            "worst_set": float(means[np.abs(means[:, column]).argmax(), column]),
            "at_best": _at_best(place[others, column], float(place[chosen, column].mean()), len(ids)),
        }
        for column, name in enumerate(COVARIATES)
    }
    counts = np.unique(drawn, return_counts=True)[1]
    shared = [len(set(a) & set(b)) / len(ids) for a, b in combinations(sets, 2)]
    return {
        "n_sets": len(sets),
        "n_features": len(ids),
        "n_pool": len(others),
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


def _at_best(others: Float[ndarray, " pool"], wanted: float, n: int) -> float:
    """The difference nearest 0 between ``wanted`` and the mean of any ``n`` of the others."""
    ranked = np.sort(others)
    lowest, highest = float(ranked[:n].mean()) - wanted, float(ranked[-n:].mean()) - wanted
    return float(np.clip(0.0, lowest, highest))
