"""Bootstrap intervals of RelIE over groups of samples.

arXiv 2509.05291 gives no interval; this procedure is specific to mechprobe. Groups (samples of one prompt) are drawn with
replacement, as many as there are. Every effect is summed again, and RelIE is computed from the sums. The middle 95 % of
the draws is the interval (percentile bootstrap). RelIE does not change when all effects are scaled, so groups may differ
in size.

The bootstrap needs one sum for every group, feature and model. As long as there are no more groups than a model is wide,
these sums take no more memory than the weights of the dictionary. Draws are made from the sums in blocks of about
``_BLOCK`` values, since the sums of all draws would take draws / groups times as much memory.

A feature with an effect in a single group has the same RelIE in every draw that contains it. One group says nothing about
the variation between groups, so the feature has no interval, and neither has anything measured on a single group. Draws
without any group of a feature give it no RelIE and are left out. RelIE uses |IE|, so an effect of uncertain sign has an
interval above 0 even if its true value is 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.selection.rankings.relie import IndirectEffects, relative_effects

_BLOCK = 1 << 21


@dataclass(frozen=True)
class RelieIntervals:
    """95 % percentile intervals of RelIE, one against all; NaN for a feature without an interval.

    Attributes:
        low: Lower ends.
        high: Upper ends.
        n_groups: Groups of samples in which a feature has an effect in any model. An interval needs 2 or more.
    """

    low: Float[ndarray, "d_sae model"]
    high: Float[ndarray, "d_sae model"]
    n_groups: Int[ndarray, " d_sae"]


def group_draws(n_groups: int, draws: int, seed: int) -> Float[ndarray, "draw group"]:
    """How often each bootstrap draw contains every group: whole numbers that sum to ``n_groups``.

    A single group gives no draws, because every draw would be the same.

    Example:
        >>> group_draws(3, 2, seed=0).sum(axis=1)
        array([3., 3.])
        >>> group_draws(1, 2, seed=0).shape
        (0, 1)
    """
    if n_groups < 2:
        return np.zeros((0, n_groups))
    rng = np.random.default_rng([seed, 11])
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws).astype(np.float64)


def drawn_effects(
    effects: IndirectEffects, weights: Float[ndarray, "_draw group"]
) -> Iterator[Float[ndarray, "d_sae model"]]:
    """Yield the sums of the effects in every draw."""
    _, d_sae, n_models = effects.by_group.shape
    sums = effects.by_group.reshape(effects.n_groups, -1)
    step = max(1, _BLOCK // max(1, sums.shape[1]))
    for start in range(0, len(weights), step):
        yield from (weights[start : start + step] @ sums).reshape(-1, d_sae, n_models)


def relie_intervals(effects: IndirectEffects, weights: Float[ndarray, "_draw group"]) -> RelieIntervals:
    """The interval of every feature's RelIE in every model.

    Args:
        effects: Indirect effects with their sums by group.
        weights: `group_draws` of the same number of groups.
    """
    _, d_sae, n_models = effects.by_group.shape
    n_groups = (effects.by_group != 0).any(axis=2).sum(axis=0)
    ends = np.full((2, d_sae, n_models), np.nan)
    used = np.flatnonzero(n_groups >= 2) if len(weights) else np.zeros(0, dtype=np.int64)
    step = max(1, _BLOCK // max(1, len(weights) * n_models))
    for start in range(0, len(used), step):
        block = used[start : start + step]
        sums = weights @ effects.by_group[:, block].reshape(effects.n_groups, -1)
        ends[:, block] = _middle(relative_effects(sums.reshape(-1, n_models)).reshape(-1, len(block), n_models))
    return RelieIntervals(ends[0], ends[1], n_groups)


def _middle(drawn: Float[ndarray, "draw feature model"]) -> Float[ndarray, "2 feature model"]:
    """2.5 % and 97.5 % quantile of the finite draws, with linear interpolation; NaN where no draw is finite.

    Equal to ``np.nanquantile``, which makes one Python call for every cell.
    """
    ordered = np.sort(drawn, axis=0)  # NaN last
    last = np.isfinite(drawn).sum(axis=0) - 1
    ends = []
    for share in (0.025, 0.975):
        place = share * np.maximum(last, 0)
        below = place.astype(np.int64)
        above = np.minimum(below + 1, np.maximum(last, 0))
        low, high = (np.take_along_axis(ordered, index[None], axis=0)[0] for index in (below, above))
        ends.append(low + (place - below) * (high - low))
    return np.stack(ends)
