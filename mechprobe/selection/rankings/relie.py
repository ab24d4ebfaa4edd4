"""Causal strength of a feature in each model: indirect effects, RelIE (arXiv 2509.05291), and bootstrap intervals of RelIE.

`mechprobe.selection.rankings.indirect_effects` measures the indirect effects IE. RelIE compares them between models::

    RelIE_m[k] = |IE_m[k]| / Σ_j |IE_j[k]|              one against all; rows sum to 1
    RelIE_ij[k] = |IE_j[k]| / (|IE_i[k]| + |IE_j[k]|)   pairwise

The paper gives no interval; this procedure is specific to mechprobe. Groups (samples of one prompt) are drawn with
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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

_BLOCK = 1 << 21


@dataclass(frozen=True)
class IndirectEffects:
    """Indirect effects of every feature in every model, as means over ``n_samples`` samples.

    Attributes:
        models: Names of the columns.
        error_effect: Effect of the reconstruction error, per model.
        metric: Mean metric of each unedited model; ``emptied`` without features and error.
        by_group: Sums of the effects over the samples of each group, the unit of the bootstrap. Without given groups
            every sample is a group.
    """

    models: tuple[str, ...]
    error_effect: Float[ndarray, " model"]
    metric: Float[ndarray, " model"]
    emptied: Float[ndarray, " model"]
    n_samples: int
    by_group: Float[ndarray, "group d_sae model"]

    @cached_property
    def effect(self) -> Float[ndarray, "d_sae model"]:
        """IE, in units of the metric per sample; 0 for a feature that never fires."""
        return self.by_group.sum(axis=0) / self.n_samples

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.by_group)

    @property
    def relie(self) -> Float[ndarray, "d_sae model"]:
        """`relative_effects` of the effects, one against all."""
        return relative_effects(self.effect)

    def only(self, models: Sequence[str]) -> "IndirectEffects":
        """The effects in some of the models; RelIE one against all is then relative to these alone."""
        chosen = [self.models.index(name) for name in models]
        return IndirectEffects(
            tuple(models),
            self.error_effect[chosen],
            self.metric[chosen],
            self.emptied[chosen],
            self.n_samples,
            self.by_group[:, :, chosen],
        )

    def pairwise(self, first: str, second: str) -> Float[ndarray, " d_sae"]:
        """RelIE of ``second`` against ``first`` alone."""
        return relative_effects(self.effect[:, [self.models.index(name) for name in (first, second)]])[:, 1]

    @property
    def completeness_gap(self) -> Float[ndarray, " model"]:
        """|Σ effects + error effect − (emptied − metric)| / |emptied − metric|: the error of the path's steps."""
        total = self.emptied - self.metric
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.abs(self.effect.sum(axis=0) + self.error_effect - total) / np.abs(total)


def relative_effects(effect: Float[ndarray, "d_sae model"]) -> Float[ndarray, "d_sae model"]:
    """RelIE: |effect| over its sum over models; NaN for a feature without effect in any model.

    Example:
        >>> relative_effects(np.array([[1.0, -3.0], [0.0, 0.0]]))
        array([[0.25, 0.75],
               [ nan,  nan]])
    """
    size = np.abs(np.asarray(effect, dtype=np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        return size / size.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class RelieIntervals:
    """95 % percentile intervals of RelIE, one against all; NaN for a feature without an interval.

    ``n_groups`` counts the groups of samples in which a feature has an effect in any model. An interval needs 2 or more.
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
    """The interval of every feature's RelIE in every model, from `group_draws` of the same number of groups."""
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
