"""Random sets that match a selection feature by feature.

Selected features are extreme, so a set drawn anywhere in the dictionary would be weaker before any edit. Random sets
therefore match the selection in the logarithms of density, decoder norm and contribution norm
(`mechprobe.selection.covariates`), each in standard deviations over the live features. The procedure is specific to
mechprobe; the terms are those of matching in observational studies (Stuart 2010).

Every set is one optimal assignment (scipy's ``linear_sum_assignment``) of the selection to the live features outside it:
the assignment of the smallest sum of squared distances and prices. A feature's price is `REUSE_PRICE` for every earlier
set that contains it, which spreads the sets over the dictionary, plus a random amount of mean `CHANCE`, drawn anew for
every set, which makes the sets random draws. Optimal matches of extreme features all err to one side. The targets are
therefore shifted by what the mean of the set misses until the means agree; the shift is the Lagrange multiplier of the
constraint of equal means, found by subgradient steps. If the dictionary has no such features, the shift would grow
without bound and every set would hold the same few extreme features; `MAX_SHIFT` bounds it.

Prices grow with the number of sets, so later sets match worse. `MAX_SETS` bounds their number.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.errors import SelectionError
from mechprobe.progress import progress
from mechprobe.selection.config import MAX_SETS
from mechprobe.selection.covariates import Covariates

REUSE_PRICE = 0.25
"""Squared distance that one earlier use costs."""
CHANCE = 0.5
"""Mean of the random price, a squared distance; exponentially distributed."""
TOLERANCE = 0.02
"""Difference of means, in standard deviations, at which the shift stops."""
MAX_SHIFT = 1.5
"""Largest shift of a covariate, in standard deviations."""
MAX_ROUNDS = 6
_BLOCK = 128


def matched_random_sets(ids: Sequence[int], covariates: Covariates, *, n_sets: int, seed: int) -> list[list[int]]:
    """Random sets whose i-th feature is the match of the i-th of ``ids``.

    Args:
        ids: The set to match. None of its features enters a random set.
        covariates: What is matched.
        n_sets: Number of sets.
        seed: Seed of the random prices.

    Raises:
        SelectionError: More than `MAX_SETS` sets are asked for, or fewer live features are left than the set has.
    """
    if n_sets > MAX_SETS:
        raise SelectionError(
            f"{n_sets:,} random sets are asked for and at most {MAX_SETS:,} can be matched; ask for fewer."
        )
    if n_sets == 0:
        return []
    pool = _pool(ids, covariates)
    rng = np.random.default_rng(seed)
    target, around = covariates.standardized[list(ids)], covariates.standardized[pool]
    uses = np.zeros(len(pool), dtype=np.int64)
    sets = []
    with progress(n_sets, "matching random sets", unit="sets") as advance:
        for _ in range(n_sets):
            price = REUSE_PRICE * uses + CHANCE * rng.standard_exponential(len(pool))
            drawn = _balanced(target, around, price)
            uses[drawn] += 1
            sets.append(pool[drawn].tolist())
            advance()
    rng.shuffle(sets)  # later sets pay for earlier ones, so the first sets would match better than the last
    return sets


def _pool(ids: Sequence[int], covariates: Covariates) -> Int[ndarray, " pool"]:
    """Live features outside the set, from which random sets are drawn."""
    live = covariates.live
    live[list(set(ids))] = False
    pool = np.flatnonzero(live)
    if len(pool) < len(ids):
        raise SelectionError(
            f"A random set of {len(ids)} features cannot be drawn: {len(pool)} live features are outside "
            "the selection; select fewer, or train a larger dictionary."
        )
    return pool


def _balanced(
    target: Float[ndarray, "chosen covariate"], pool: Float[ndarray, "pool covariate"], price: Float[ndarray, " pool"]
) -> Int[ndarray, " chosen"]:
    """The assignment whose means come nearest to those of the target, over a few shifts of the target."""
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
    """A different row of the pool for every target, with the smallest sum of squared distances and prices.

    Each of n targets needs only its n cheapest rows, because the other targets can take at most n − 1 of them. The best
    assignment among these rows is therefore the best of all. More than `_BLOCK` targets are assigned block by block, so
    that the time grows linearly with their number.
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
