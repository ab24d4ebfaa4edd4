"""How models share a feature's decoder: MAS, NRN, presence, cosine and shift, as functions of decoders alone."""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray


def mas(norms: Float[ndarray, "d_sae model"]) -> Float[ndarray, "d_sae model"]:
    """Model attribution score: the share of each model in a feature's decoder norm (arXiv 2604.25011).

    ``norm[m] / Σ_m norm[m]``: rows sum to 1, M models that share the feature equally have 1/M each, and NaN marks a feature
    whose norms are all 0. The paper takes L1 norms, as ``crosscoder.decoder_norm(1)`` gives them.

    Example:
        >>> mas(np.array([[1.0, 1.0, 2.0], [3.0, 3.0, 3.0]])).round(3)
        array([[0.25 , 0.25 , 0.5  ],
               [0.333, 0.333, 0.333]])
    """
    norms = np.asarray(norms, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return norms / norms.sum(axis=1, keepdims=True)


def nrn(norms: Float[ndarray, "d_sae model"], tuned: int, base: int = 0) -> Float[ndarray, " d_sae"]:
    """Normalized relative norm of one tuned model against base (arXiv 2604.25011).

    ``norm[tuned] / (norm[base] + norm[tuned])``: 0 for base only, 0.5 for equal shares, 1 for tuned only; NaN where both
    norms are 0.

    Example:
        >>> nrn(np.array([[1.0, 3.0], [2.0, 2.0], [5.0, 0.0]]), tuned=1)
        array([0.75, 0.5 , 0.  ])
    """
    norms = np.asarray(norms, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return norms[:, tuned] / (norms[:, base] + norms[:, tuned])


def present(norms: Float[ndarray, "d_sae model"], absent_below: float) -> Bool[ndarray, "d_sae model"]:
    """Which models have a feature: those whose norm is at least ``absent_below`` times the largest over models.

    With the default 0.5, a feature present in one of three models has MAS > 0.5 there (the usual cut). The rule does not
    depend on the number of models.

    Example:
        >>> present(np.array([[1.0, 0.9, 0.2], [0.1, 0.2, 1.0]]), 0.5)
        array([[ True,  True, False],
               [False, False,  True]])
    """
    norms = np.asarray(norms, dtype=np.float64)
    return norms >= absent_below * norms.max(axis=1, keepdims=True)


def decoder_cosine(decoder: Float[ndarray, "d_sae model d_model"]) -> Float[ndarray, "d_sae model model"]:
    """Cosine between the decoder directions of one feature in each pair of models; NaN where a direction is 0.

    Example:
        >>> decoder_cosine(np.array([[[1.0, 0.0], [1.0, 1.0]]]))[0, 0, 1].round(4)
        np.float64(0.7071)
    """
    decoder = np.asarray(decoder, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = decoder / np.linalg.norm(decoder, axis=-1, keepdims=True)
    return np.clip(unit @ unit.swapaxes(1, 2), -1.0, 1.0)


def decoder_shift(
    decoder: Float[ndarray, "d_sae model d_model"], scale: Float[ndarray, " model"], tuned: int, base: int = 0
) -> Float[ndarray, " d_sae"]:
    """Length of the change of a feature's decoder from base to tuned, in the models' own units.

    ``‖s_tuned W_dec[k, tuned] − s_base W_dec[k, base]‖₂``. Times the activation, it is the feature's contribution to the
    difference of the residuals under the joint read-out. MAS and activations do not show it.

    Example:
        >>> decoder_shift(np.array([[[1.0, 0.0], [1.0, 1.0]]]), np.array([1.0, 2.0]), tuned=1).round(4)
        array([2.2361])
    """
    own = np.asarray(decoder, dtype=np.float64) * np.asarray(scale, dtype=np.float64)[None, :, None]
    return np.linalg.norm(own[:, tuned] - own[:, base], axis=-1)
