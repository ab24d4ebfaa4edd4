"""How far RelIE hangs on the samples it was measured on: a bootstrap over groups of samples.

arXiv 2509.05291 gives no interval; all of this is ours. Groups (samples of one prompt) are drawn with replacement, as many
as there are, every effect is summed anew, and RelIE is taken of the sums; the middle 95 % of the draws is the interval
(percentile bootstrap). RelIE does not change when all effects are scaled, so groups need not be of one size.

What is kept for it is a sum for every group, feature and model: no more bytes than the weights of the dictionary itself
while there are no more groups than a model is wide. Sums for every draw would be draws / groups times as much. Draws are made
from the sums in blocks of features, or in blocks of draws, of about ``_BLOCK`` values.

A feature with an effect in one group alone has the same RelIE in every draw that holds it. That is no certainty but the
lack of a second look, so it has no interval, and neither has anything measured on a single group. In draws without any of
its groups a feature has no RelIE, and they are left out. An effect whose sign is not sure folds over in |IE|: its interval lies above 0
even where the true effect is 0.
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
    """95 % percentile intervals of RelIE, one against all; NaN where there is none.

    Attributes:
        low: Lower ends.
        high: Upper ends.
        n_groups: Groups of samples in which a feature has an effect in any model; below 2 there is no interval.
    """

    low: Float[ndarray, "d_sae model"]
    high: Float[ndarray, "d_sae model"]
    n_groups: Int[ndarray, " d_sae"]


def group_draws(n_groups: int, draws: int, seed: int) -> Float[ndarray, "draw group"]:
    """How often every group counts in each bootstrap draw, whole numbers that sum to ``n_groups``.

    A single group would be drawn again and again, as if it were certain: there is no draw of it.

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
    """Sums of the effects in every draw, one draw after the other."""
    _, d_sae, n_models = effects.by_group.shape
    sums = effects.by_group.reshape(effects.n_groups, -1)
    step = max(1, _BLOCK // max(1, sums.shape[1]))
    for start in range(0, len(weights), step):
        yield from (weights[start : start + step] @ sums).reshape(-1, d_sae, n_models)


def relie_intervals(effects: IndirectEffects, weights: Float[ndarray, "_draw group"]) -> RelieIntervals:
    """The interval of every feature's RelIE in every model.

    Args:
        effects: Indirect effects with their sums by group.
        weights: `group_draws` of as many groups.
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
    """2.5 % and 97.5 % quantile of the finite draws, linear as numpy's; NaN where none is finite.

    ``np.nanquantile`` is the same number, one Python call a cell.
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
