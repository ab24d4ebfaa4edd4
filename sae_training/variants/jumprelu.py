"""A learned threshold per latent (Rajamanoharan et al., arXiv 2407.14435), on the score in place of h.

With the score s_k = h_k n_k, n_k = sum_m ||W_dec[k, m]||_2, and a threshold theta_k > 0, trained as its logarithm::

    f_k = h_k H(s_k - theta_k);    penalty = lambda / B sum_b sum_k H(s_bk - theta_k)

The derivative of the step function H is zero almost everywhere. Training uses the pseudo-derivatives of the paper
(equations 11 and 12) in its place, with the kernel K(u) = 1 where |u| < 1/2, 0 elsewhere, and a bandwidth eps::

    d(s H(s - theta)) / d theta := -(theta / eps) K((s - theta) / eps);    d H(s - theta) / d theta := -K(.) / eps

so tokens near a threshold move it, including those just below. This package differs from the paper in three points. The
score replaces h, so loss and thresholds do not depend on how the size of a latent is divided between encoder and
decoder. A score at or below 0 is outside the window. The auxiliary loss of the other variants revives dead latents, in
place of a pre-activation loss. As in the paper, the penalty has no derivative with respect to the encoder.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.active import Active, DenseActive, SparseActive
from sae_training.variants.base import ActivationVariant, Mask, Scores, Threshold


class JumpReLU(ActivationVariant):
    """Selects the scores above the threshold of each latent."""

    name: ClassVar[str] = "jumprelu"
    has_fixed_k: ClassVar[bool] = False
    has_dead_latent_loss: ClassVar[bool] = True
    has_latent_threshold: ClassVar[bool] = True

    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:  # noqa: ARG002
        """The same rule as in training."""
        return scores > threshold.to(scores.dtype)


@dataclass(frozen=True)
class Jump:
    """The entries of a batch that move thresholds.

    Attributes:
        active: Entries above their threshold.
        below: Entries within half a bandwidth below it, with the value h. They are not part of the reconstruction.
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
    """Split the scores of a batch at the thresholds; ``sparse`` (CPU) gives sparse entries."""
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
    """The pseudo-derivative of the loss with respect to the logarithm of each threshold.

    Args:
        jump: Entries of the batch.
        values_gradients: Derivative of the reconstruction loss with respect to f, at the entries of ``jump.active`` and
            of ``jump.below``.
        norm: The norms n_k.
        threshold: The thresholds theta_k.
        bandwidth: The bandwidth eps.
        penalty: The factor lambda / B, one number or one per latent.
    """
    by_acts, n_near = torch.zeros_like(threshold), torch.zeros_like(threshold)
    for part, gradient in zip((jump.active, jump.below), values_gradients, strict=True):
        zeros = torch.zeros_like(part.values)
        own, size = part.add_per_latent(zeros, threshold), part.add_per_latent(zeros, norm)
        # In a dense matrix, inactive entries have threshold 0 here, which real thresholds never have.
        inside = (own > 0) & ((part.values * size - own).abs() < bandwidth / 2)
        by_acts = by_acts + part.column_sum(gradient * inside)
        n_near = n_near + part.column_sum(inside.to(threshold.dtype))
    by_scores = torch.where(norm > 0, by_acts / norm, 0.0)
    return -threshold / bandwidth * (threshold * by_scores + penalty * n_near)
