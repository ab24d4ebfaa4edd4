"""Causal strength of a feature in each model: indirect effects and RelIE (arXiv 2509.05291).

`mechprobe.selection.rankings.indirect_effects` measures the indirect effects IE. RelIE compares them between models::

    RelIE_m[k] = |IE_m[k]| / Σ_j |IE_j[k]|              one against all; rows sum to 1
    RelIE_ij[k] = |IE_j[k]| / (|IE_i[k]| + |IE_j[k]|)   pairwise
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy import ndarray


@dataclass(frozen=True)
class IndirectEffects:
    """Indirect effects of every feature in every model.

    Attributes:
        models: Names of the columns of ``effect``.
        error_effect: Effect of the reconstruction error, per model.
        metric: Mean metric of each unedited model.
        emptied: Mean metric without features and error.
        n_samples: Number of samples behind the means.
        by_group: Sums of the effects over the samples of each group, the unit of the bootstrap
            (`mechprobe.selection.rankings.relie_intervals`). Without given groups every sample is a group.
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
