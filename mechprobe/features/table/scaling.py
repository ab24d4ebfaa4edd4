"""Latent scaling: how much of a feature is present in a model's activations (arXiv 2504.02922).

An L1 penalty can shrink a feature's decoder to zero in a model that has the concept, or leave the concept in the
reconstruction error. Latent scaling measures the activations themselves. beta is the least-squares factor with which the
owner's direction, times the feature's activation, explains a target y of model m::

    beta[owner, m, k] = Σ f ⟨W_dec[k, owner], y_m⟩ / (Σ f² ‖W_dec[k, owner]‖²)

with y either the reconstruction error of m plus the part of feature k, or the reconstruction of m without the constant
``b_dec``, which contains no feature. ``nu[owner, m] = beta[owner, m] / beta[owner, owner]`` is near 0 where m lacks the feature,
and near 1 where m has it as much as its owner.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from mechprobe.features.table.sums import FeatureSums
from sae_training import Crosscoder


@dataclass(frozen=True)
class LatentScaling:
    """beta by owner of the direction, model explained, and feature; NaN where the feature is never active."""

    beta_error: Float[ndarray, "model model d_sae"]
    beta_reconstruction: Float[ndarray, "model model d_sae"]

    def nu_error(self, owner: int, model: int) -> Float[ndarray, " d_sae"]:
        """``beta_error`` of ``model`` over that of ``owner``; NaN where the owner's is not above zero."""
        return _ratio(self.beta_error, owner, model)

    def nu_reconstruction(self, owner: int, model: int) -> Float[ndarray, " d_sae"]:
        """``beta_reconstruction`` of ``model`` over that of ``owner``; NaN where the owner's is not above zero."""
        return _ratio(self.beta_reconstruction, owner, model)


def latent_scaling(crosscoder: Crosscoder, sums: FeatureSums) -> LatentScaling:
    """`LatentScaling` from sums over rows."""
    return scaling_of(decoder_gram(crosscoder), sums.f_square, sums.dot_error, sums.dot_reconstruction)


def decoder_gram(crosscoder: Crosscoder) -> Float[Tensor, "owner model d_sae"]:
    """⟨W_dec[k, owner], W_dec[k, model]⟩ of every feature, in scaled units."""
    decoder = crosscoder.W_dec.detach().double()
    return (decoder.unsqueeze(2) * decoder.unsqueeze(1)).sum(-1).permute(1, 2, 0)


def scaling_of(
    gram: Float[Tensor, "owner model feature"],
    f_square: Float[Tensor, " feature"],
    dot_error: Float[Tensor, "owner model feature"],
    dot_reconstruction: Float[Tensor, "owner model feature"],
) -> LatentScaling:
    """`LatentScaling` of some features from `decoder_gram` and the sums of `FeatureSums`."""
    own = gram.diagonal(dim1=0, dim2=1).T.unsqueeze(1)
    denominator = (f_square * own).cpu().numpy()
    with_own_part = (dot_error + f_square * gram).cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        beta_error = np.where(denominator > 0, with_own_part / denominator, np.nan)
        beta_reconstruction = np.where(denominator > 0, dot_reconstruction.cpu().numpy() / denominator, np.nan)
    return LatentScaling(beta_error, beta_reconstruction)


def _ratio(beta: ndarray, owner: int, model: int) -> ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(beta[owner, owner] > 0, beta[owner, model] / beta[owner, owner], np.nan)
