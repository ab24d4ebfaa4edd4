"""A learned threshold per feature (Rajamanoharan et al., arXiv 2407.14435), with the score in the place of h.

With the score s_k = h_k n_k, n_k = sum_m ||W_dec[k, m]||_2, and a threshold theta_k > 0 (trained as its logarithm)::

    f_k = h_k H(s_k - theta_k);    penalty = lambda / B sum_b sum_k H(s_bk - theta_k)

H is the step function, whose derivative by theta is zero almost everywhere. In its place stand the paper's
pseudo-derivatives (equations 11 and 12) with the rectangle kernel K(u) = 1 where |u| < 1/2 and a bandwidth eps::

    d(s H(s - theta)) / d theta := -(theta / eps) K((s - theta) / eps);    d H(s - theta) / d theta := -K(.) / eps

so that the tokens near a threshold move it, those just below included. Ours: the score takes the place of h, which
makes loss and thresholds independent of how a feature's size is divided between encoder and decoder; a score at or
below 0 is outside the window; and dead features are revived by the auxiliary loss of the other variants instead of a
pre-activation loss. The penalty has no derivative by the encoder, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.active import Active, DenseActive, SparseActive
from sae_training.variants.base import ActivationVariant, Mask, Scores, Threshold


class JumpReLU(ActivationVariant):
    """Scores above the feature's own threshold."""

    name: ClassVar[str] = "jumprelu"
    has_fixed_k: ClassVar[bool] = False
    has_dead_feature_loss: ClassVar[bool] = True
    has_feature_threshold: ClassVar[bool] = True

    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:  # noqa: ARG002
        """As in training."""
        return scores > threshold.to(scores.dtype)


@dataclass(frozen=True)
class Jump:
    """The entries of a batch that matter to thresholds.

    Attributes:
        active: those above their threshold.
        below: those within half a bandwidth below it, at h, not 0; they are no part of the reconstruction.
    """

    active: Active
    below: Active


def select_jump(
    scores: Float[Tensor, "batch d_sae"],
    norm: Float[Tensor, " d_sae"],
    threshold: Float[Tensor, " d_sae"],
    bandwidth: float,
    *,
    sparse: bool,
) -> Jump:
    """Split a batch's scores at the thresholds; ``sparse`` (CPU) gives the entries alone."""
    floor = (threshold - bandwidth / 2).clamp(min=0)
    if not sparse:
        acts, on = scores / norm, scores > threshold
        near = (scores > floor) & ~on
        return Jump(DenseActive(torch.where(on, acts, 0.0), on), DenseActive(torch.where(near, acts, 0.0), near))
    places = torch.from_numpy(np.flatnonzero(scores.numpy() > floor.numpy()))
    values, columns = scores.view(-1)[places], places % scores.shape[1]
    on = values > threshold[columns]
    parts = [
        SparseActive.from_flat(places[which], values[which] / norm[columns[which]], *scores.shape)
        for which in (on, ~on)
    ]
    return Jump(*parts)


def log_threshold_gradient(
    jump: Jump,
    values_gradients: tuple[Tensor, Tensor],
    norm: Float[Tensor, " d_sae"],
    threshold: Float[Tensor, " d_sae"],
    bandwidth: float,
    penalty: float | Float[Tensor, " d_sae"],
) -> Float[Tensor, " d_sae"]:
    """The pseudo-derivative of the loss by the logarithm of each threshold.

    Args:
        jump: of the batch.
        values_gradients: derivative of the reconstruction's loss by f at the entries of ``jump.active`` and of
            ``jump.below``.
        norm: n_k.
        threshold: theta_k.
        bandwidth: eps.
        penalty: lambda / B, one number or one per feature.
    """
    by_acts, n_near = torch.zeros_like(threshold), torch.zeros_like(threshold)
    for part, gradient in zip((jump.active, jump.below), values_gradients, strict=True):
        zeros = torch.zeros_like(part.values)
        own, size = part.add_per_feature(zeros, threshold), part.add_per_feature(zeros, norm)
        # Entries that are not active are 0 in a dense matrix, their threshold too; a threshold is never 0.
        inside = (own > 0) & ((part.values * size - own).abs() < bandwidth / 2)
        by_acts = by_acts + part.column_sum(gradient * inside)
        n_near = n_near + part.column_sum(inside.to(threshold.dtype))
    by_scores = torch.where(norm > 0, by_acts / norm, 0.0)
    return -threshold / bandwidth * (threshold * by_scores + penalty * n_near)
