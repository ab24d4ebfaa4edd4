"""Classes of features: which models have a feature, by decoder norms and confirmed by latent scaling.

``shared`` features are in all models, ``rl-only`` in one, ``base+rl`` in some; ``dead`` features are never active. The claim
that a model lacks a feature is accepted only where nu on the error and nu on the reconstruction agree, for every model that
lacks the feature against every model that has it. Otherwise the class is ``unconfirmed``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from mechprobe.features.config import ClassThresholds
from mechprobe.features.table.norms import present
from mechprobe.features.table.sums import FeatureSums
from sae_training import Crosscoder


@dataclass(frozen=True)
class LatentScaling:
    """Latent scaling: how much of a feature is present in a model's activations (arXiv 2504.02922).

    An L1 penalty can shrink a feature's decoder to zero in a model that has the concept, or leave the concept in the
    reconstruction error. beta is the least-squares factor with which the owner's direction, times the feature's activation,
    explains a target y of model m, and NaN where the feature is never active::

        beta[owner, m, k] = Σ f ⟨W_dec[k, owner], y_m⟩ / (Σ f² ‖W_dec[k, owner]‖²)

    with y either the reconstruction error of m plus the part of feature k, or the reconstruction of m without the constant
    ``b_dec``. ``nu[owner, m] = beta[owner, m] / beta[owner, owner]`` is near 0 where m lacks the feature, near 1 where m has
    it as much as its owner, and NaN where ``beta[owner, owner]`` is not above zero.
    """

    beta_error: Float[ndarray, "model model d_sae"]
    beta_reconstruction: Float[ndarray, "model model d_sae"]

    def nu_error(self, owner: int, model: int) -> Float[ndarray, " d_sae"]:
        """``beta_error`` of ``model`` over that of ``owner``."""
        return _ratio(self.beta_error, owner, model)

    def nu_reconstruction(self, owner: int, model: int) -> Float[ndarray, " d_sae"]:
        """``beta_reconstruction`` of ``model`` over that of ``owner``."""
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
    dots = ((dot_error + f_square * gram).cpu().numpy(), dot_reconstruction.cpu().numpy())
    with np.errstate(invalid="ignore", divide="ignore"):
        return LatentScaling(*(np.where(denominator > 0, dot / denominator, np.nan) for dot in dots))


def _ratio(beta: ndarray, owner: int, model: int) -> ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(beta[owner, owner] > 0, beta[owner, model] / beta[owner, owner], np.nan)


SHARED, DEAD, UNCONFIRMED = "shared", "dead", "unconfirmed"


def class_name(names: Sequence[str], has: Sequence[bool]) -> str:
    """Name of the class of features that exactly the models with ``has`` have.

    Example:
        >>> class_name(["base", "sft", "rl"], [False, False, True])
        'rl-only'
        >>> class_name(["base", "sft", "rl"], [True, False, True])
        'base+rl'
    """
    owners = [name for name, owned in zip(names, has, strict=True) if owned]
    if len(owners) == len(names):
        return SHARED
    return f"{owners[0]}-only" if len(owners) == 1 else "+".join(owners)


def specific_classes(names: Sequence[str]) -> list[str]:
    """The classes among ``names`` that claim that some model lacks a feature."""
    return [name for name in names if name not in (SHARED, UNCONFIRMED, DEAD)]


def classes_by_norm(
    names: Sequence[str], norms: Float[ndarray, "d_sae model"], dead: Bool[ndarray, " d_sae"], absent_below: float
) -> list[str]:
    """Class of every feature by decoder norms alone."""
    has = present(norms, absent_below)
    return [DEAD if gone else class_name(names, row) for row, gone in zip(has.tolist(), dead.tolist(), strict=True)]


def confirmed(
    norms: Float[ndarray, "d_sae model"], scaling: LatentScaling, thresholds: ClassThresholds
) -> Bool[ndarray, " d_sae"]:
    """Features for which latent scaling confirms every absence that the norms claim."""
    has = present(norms, thresholds.absent_below)
    result = np.ones(len(norms), dtype=bool)
    for owner in range(norms.shape[1]):
        for model in range(norms.shape[1]):
            claimed = has[:, owner] & ~has[:, model]
            error, reconstruction = scaling.nu_error(owner, model), scaling.nu_reconstruction(owner, model)
            agrees = (error <= thresholds.nu_error_max) & (reconstruction <= thresholds.nu_reconstruction_max)
            result &= ~claimed | agrees
    return result


def classes(by_norm: Sequence[str], agrees: Bool[ndarray, " d_sae"]) -> list[str]:
    """The class by norms where latent scaling agrees or nothing is claimed, else ``unconfirmed``."""
    pairs = zip(by_norm, agrees.tolist(), strict=True)
    return [name if name in (SHARED, DEAD) or agreed else UNCONFIRMED for name, agreed in pairs]


def class_counts(values: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Number of features in each class. Classes of one model, ``shared``, ``unconfirmed`` and ``dead`` are always listed."""
    counts = Counter(values)
    first, last = [SHARED, *(f"{name}-only" for name in names)], [UNCONFIRMED, DEAD]
    others = sorted(set(counts) - {*first, *last})
    return {name: counts.get(name, 0) for name in [*first, *others, *last]}
