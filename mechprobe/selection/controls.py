"""Random sets that match a selection feature by feature, and the quality of the match.

Selected features are extreme, so a set drawn anywhere in the dictionary would be weaker before any edit. Random sets
therefore match the selection in the logarithms of density, decoder norm and the norm that the edit writes (`Covariates`),
each in standard deviations over the live features. The procedure is specific to
mechprobe; the terms are those of matching in observational studies (Stuart 2010).

Sets that share features are not independent draws. As many sets as the live features outside the selection allow are
therefore drawn together, without a shared feature: one optimal assignment (scipy's ``linear_sum_assignment``) gives every
selected feature one match for each set, and chance deals these matches to the sets, so that no set matches better than
another by construction. Where the dictionary has too few features, further rounds use every feature once more before any
is used again. `effective_draws` says how many independent sets they are worth.

The assignment minimizes squared distances and prices; a price is a random amount of mean `CHANCE`, drawn anew for every
round, which makes the sets random draws. Optimal matches of extreme features all err to one side. The targets are
therefore shifted by what the mean of the round misses until the means agree; the shift is the Lagrange multiplier of the
constraint of equal means, found by subgradient steps. `MAX_SHIFT` bounds it, because a dictionary may have no such features.
Sets of a small dictionary therefore write less than the selection; interventions rescale them, too (set kind ``rescaled``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.errors import SelectionError
from mechprobe.progress import progress
from mechprobe.results import Number, Result
from mechprobe.selection.config import MAX_SETS


@dataclass(frozen=True)
class Covariates:
    """Density, decoder norm and mean activation of every feature, which give the matched quantities.

    Attributes:
        density: Share of tokens on which each feature is active; 0 for a dead feature.
        decoder_norm: L2 norm in the models' own units, summed over models.
        mean_act: Mean activation over the tokens where each feature is active.
        difference: Mean over tokens of the norm that a transplant of each feature writes, which is J under the joint read-out;
            None for edits of one model, which write the activation times the decoder norm.
    """

    density: Float[ndarray, " d_sae"]
    decoder_norm: Float[ndarray, " d_sae"]
    mean_act: Float[ndarray, " d_sae"]
    difference: Float[ndarray, " d_sae"] | None = None

    @property
    def contribution_norm(self) -> Float[ndarray, " d_sae"]:
        """Mean activation times decoder norm: the size of what an ablation removes."""
        return self.decoder_norm * self.mean_act

    @property
    def live(self) -> Bool[ndarray, " d_sae"]:
        """Features that are active somewhere and have a decoder."""
        return (self.density > 0) & (self.decoder_norm > 0)

    @property
    def columns(self) -> dict[str, Float[ndarray, " d_sae"]]:
        """The matched quantities by their names in result files: ``write`` is the contribution norm."""
        shared = {"density": self.density, "decoder_norm": self.decoder_norm}
        if self.difference is None:
            return {**shared, "write": self.contribution_norm}
        return {**shared, "difference": self.difference}

    @cached_property
    def standardized(self) -> Float[ndarray, "d_sae covariate"]:
        """Logarithms of the covariates, with mean 0 and standard deviation 1 over the live features."""
        logs = np.stack([_log(values) for values in self.columns.values()], axis=1)
        live = self.live
        return logs if not live.any() else (logs - logs[live].mean(axis=0)) / np.maximum(logs[live].std(axis=0), 1e-12)


def _log(values: Float[ndarray, " d_sae"]) -> Float[ndarray, " d_sae"]:
    """Logarithms, where values below a millionth of the largest count as that."""
    return np.log(np.maximum(values, max(1e-12, 1e-6 * float(values.max(initial=0.0)))))


USE_PRICE = 1e6
"""Price of one earlier use: larger than any squared distance, so that a feature is used again only after all others."""
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
        covariates: Density, decoder norm and mean activation of all features.
        n_sets: Number of sets.
        seed: Seed of the random prices.

    Raises:
        SelectionError: More than `MAX_SETS` sets are requested, or fewer live features are left than the set has.
    """
    if n_sets > MAX_SETS:
        raise SelectionError(
            f"{n_sets:,} random sets are requested, but at most {MAX_SETS:,} can be matched; request fewer."
        )
    if n_sets == 0:
        return []
    live = covariates.live
    live[list(set(ids))] = False
    pool = np.flatnonzero(live)
    if len(pool) < len(ids):
        raise SelectionError(
            f"A random set of {len(ids)} features cannot be drawn: {len(pool)} live features are outside "
            "the selection; select fewer, or train a larger dictionary."
        )
    if not ids:
        return [[] for _ in range(n_sets)]
    rng = np.random.default_rng(seed)
    target, around = covariates.standardized[list(ids)], covariates.standardized[pool]
    uses = np.zeros(len(pool), dtype=np.int64)
    sets: list[list[int]] = []
    with progress(n_sets, "matching random sets", unit="sets") as advance:
        while len(sets) < n_sets:
            n_together = min(n_sets - len(sets), len(pool) // len(ids))
            price = USE_PRICE * uses + CHANCE * rng.standard_exponential(len(pool))
            drawn = _round(target, around, price, n_together, rng)
            uses[drawn.ravel()] += 1
            sets += pool[drawn].tolist()
            advance(n_together)
    rng.shuffle(sets)  # later rounds pay for earlier ones, so the first sets would match better than the last
    return sets


def _round(
    target: Float[ndarray, "chosen covariate"],
    pool: Float[ndarray, "pool covariate"],
    price: Float[ndarray, " pool"],
    n_sets: int,
    rng: np.random.Generator,
) -> Int[ndarray, "set chosen"]:
    """``n_sets`` sets without a shared feature; every target has one match in each, dealt by chance."""
    order = rng.permutation(len(target) * n_sets)
    drawn = np.empty(len(order), dtype=np.int64)
    drawn[order] = _balanced(np.repeat(target, n_sets, axis=0)[order], pool, price)
    return rng.permuted(drawn.reshape(len(target), n_sets), axis=1).T


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


CALIPER = 0.25
"""Largest difference of means, in standard deviations over the live features, that counts as a match (Stuart 2010)."""


class CovariateMatch(Result):
    """The match in one covariate. Differences are of mean logarithms, random minus selected, in standard deviations."""

    selected: float
    """Mean over the selected features, in the covariate's own units."""
    random: float
    """Mean over the features of all random sets, in the covariate's own units."""
    difference: float
    """Mean over the random sets of their differences."""
    worst_set: float
    """The largest difference of a single random set."""
    at_best: float
    """The difference nearest 0 that any set of this size could have in this covariate alone."""


class PairDistance(Result):
    """A selected feature, its match in a random set, and their distance in standard deviations."""

    feature: int
    random: int
    distance: float


class ControlMatch(Result):
    """How near random sets come to the selection, and how different they are from each other."""

    n_sets: int
    n_features: int
    """Features of the selection and of every random set."""
    n_pool: int
    """Live features outside the selection."""
    covariates: dict[str, CovariateMatch]
    mean_pair_distance: float
    """Mean distance of a feature and its match, in standard deviations."""
    worst_pair: PairDistance
    n_distinct: int
    """Distinct features over all random sets."""
    most_used: int
    """Random sets that contain the feature drawn most often."""
    mean_overlap: Number
    """Mean share of features that two random sets have in common; NaN for a single set."""
    n_effective: Number = float("nan")
    """Independent sets that the random sets are worth, see `effective_draws`."""
    caliper: float
    beyond_caliper: tuple[str, ...]
    """Covariates whose difference exceeds the caliper."""


def match_quality(
    ids: Sequence[int], sets: Sequence[Sequence[int]], covariates: Covariates, *, caliper: float = CALIPER
) -> ControlMatch | None:
    """The match of random sets with the selection ``ids``; None without sets or for an empty selection.

    The i-th feature of each set is the match of the i-th of ``ids``.
    """
    if not sets or not ids:
        return None
    chosen, drawn = np.asarray(ids), np.asarray(sets)
    place = covariates.standardized
    pairs = place[drawn] - place[chosen]  # [set feature covariate]
    distance = np.sqrt((pairs**2).sum(axis=2))
    worst = np.unravel_index(int(distance.argmax()), distance.shape)
    others = np.flatnonzero(covariates.live & ~np.isin(np.arange(len(place)), chosen))
    means = pairs.mean(axis=1)  # [set covariate]
    rows = {
        name: CovariateMatch(
            selected=float(raw[chosen].mean()),
            random=float(raw[drawn].mean()),
            difference=float(means[:, column].mean()),
            worst_set=float(means[np.abs(means[:, column]).argmax(), column]),
            at_best=_at_best(place[others, column], float(place[chosen, column].mean()), len(chosen)),
        )
        for column, (name, raw) in enumerate(covariates.columns.items())
    }
    counts = np.unique(drawn, return_counts=True)[1]
    shared = [len(set(a) & set(b)) / len(ids) for a, b in combinations(sets, 2)]
    return ControlMatch(
        n_sets=len(sets),
        n_features=len(ids),
        n_pool=len(others),
        covariates=rows,
        mean_pair_distance=float(distance.mean()),
        worst_pair=PairDistance(
            feature=int(chosen[worst[1]]), random=int(drawn[worst]), distance=float(distance[worst])
        ),
        n_distinct=len(counts),
        most_used=int(counts.max()),
        mean_overlap=float(np.mean(shared)) if shared else float("nan"),
        n_effective=effective_draws(sets),
        caliper=caliper,
        beyond_caliper=tuple(name for name, row in rows.items() if abs(row.difference) > caliper),
    )


def _at_best(others: Float[ndarray, " pool"], wanted: float, n: int) -> float:
    """The difference nearest 0 between ``wanted`` and the mean of any ``n`` of the others."""
    ranked = np.sort(others)
    lowest, highest = float(ranked[:n].mean()) - wanted, float(ranked[-n:].mean()) - wanted
    return float(np.clip(0.0, lowest, highest))


def effective_draws(sets: Sequence[Sequence[int]], *, draws: int = 4000) -> float:
    """Number of independent sets that sets of equal size are worth where some share features.

    If effects were sums over features, each an independent normal variable, the effects of two sets would be correlated by
    the share of features that they have in common. With M the largest effect of the sets, a set of other features exceeds them
    all with probability P = E[1 − Φ(M)], over ``draws`` draws of the effects with a fixed seed. Independent sets have P =
    1 / (1 + n), so the sets are worth 1 / P − 1. The definition is ours.
    """
    from scipy.special import ndtr

    if not sets:
        return 0.0
    if not sets[0] or len({feature for ids in sets for feature in ids}) == len(sets) * len(sets[0]):
        return float(len(sets))
    features, columns = np.unique(np.asarray(sets), return_inverse=True)
    member = np.zeros((len(sets), len(features)))
    np.put_along_axis(member, columns.reshape(len(sets), -1), 1.0, axis=1)
    values, vectors = np.linalg.eigh(member @ member.T / len(sets[0]))
    root = vectors * np.sqrt(values.clip(min=0.0))
    largest = (root @ np.random.default_rng(0).standard_normal((len(sets), draws))).max(axis=0)
    return float(np.clip(1.0 / ndtr(-largest).mean() - 1.0, 1.0, len(sets)))
