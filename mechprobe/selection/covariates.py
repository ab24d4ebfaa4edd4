"""The quantities on which random sets match a selection: density, decoder norm and contribution norm."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

COVARIATES = ("density", "decoder_norm", "write")
"""Names in result files. ``write`` is the contribution norm."""


@dataclass(frozen=True)
class Covariates:
    """Density, decoder norm and mean activation of every feature.

    Attributes:
        density: Share of tokens on which each feature is active; 0 for a dead feature.
        decoder_norm: L2 norm in the models' own units, summed over models.
        mean_act: Mean activation over the tokens where each feature is active.
    """

    density: Float[ndarray, " d_sae"]
    decoder_norm: Float[ndarray, " d_sae"]
    mean_act: Float[ndarray, " d_sae"]

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
        """The matched quantities by their names in `COVARIATES`."""
        return dict(zip(COVARIATES, (self.density, self.decoder_norm, self.contribution_norm), strict=True))

    @cached_property
    def standardized(self) -> Float[ndarray, "d_sae covariate"]:
        """Logarithms of the covariates, with mean 0 and standard deviation 1 over the live features."""
        logs = np.stack([np.log(np.maximum(values, 1e-12)) for values in self.columns.values()], axis=1)
        live = self.live
        if not live.any():
            return logs
        return (logs - logs[live].mean(axis=0)) / np.maximum(logs[live].std(axis=0), 1e-12)
