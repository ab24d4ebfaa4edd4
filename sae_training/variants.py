"""The variants: rules that decide what latents are active in training and at inference."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_training.active import Active, DenseActive, SparseActive

Scores = Float[Tensor, "batch d_sae"]
Mask = Bool[Tensor, "batch d_sae"]
Threshold = Float[Tensor, " #d_sae"] | Float[Tensor, ""]


class ActivationVariant(ABC):
    """A rule over scores relu(h_k) n_k with n_k = sum_m ||W_dec[k, m]||_2; a latent of score 0 is never active.

    Variants have no state: the crosscoder holds the threshold.
    """

    name: ClassVar[str]
    has_fixed_k: ClassVar[bool] = True
    has_l1_penalty: ClassVar[bool] = False
    has_latent_threshold: ClassVar[bool] = False
    has_dead_latent_loss: ClassVar[bool] = False
    has_running_threshold: ClassVar[bool] = False

    def training_cut(self, scores: Scores, *, k: int) -> Float[Tensor, "#batch 1"]:
        """The smallest score that is active in training: one per row, or one for the batch.

        Args:
            scores: Scores; negative ones count as 0.
            k: Latents per token.

        Raises:
            NotImplementedError: The variant has a threshold per latent in place of a cut.
        """
        raise NotImplementedError(f"variant {self.name!r} has a threshold per latent, not a cut over the scores")

    @abstractmethod
    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:
        """The latents that are active at inference; the mask of a row depends only on that row."""


class TopK(ActivationVariant):
    """Selects the k highest positive scores of each row, and all scores equal to the cut."""

    name: ClassVar[str] = "topk"
    has_dead_latent_loss: ClassVar[bool] = True

    def training_cut(self, scores: Scores, *, k: int) -> Float[Tensor, "#batch 1"]:
        """The k-th highest score of each row."""
        return torch.topk(scores, k, dim=1, sorted=True).values[:, -1:]

    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:  # noqa: ARG002
        """The same rule as in training."""
        return (scores >= self.training_cut(scores, k=k)) & (scores > 0)


class BatchTopK(ActivationVariant):
    """Selects the k * batch highest positive scores of a batch, and all scores equal to the cut (arXiv 2412.06410).

    At inference, a latent is active if its score exceeds the running mean of the training cuts.
    """

    name: ClassVar[str] = "batchtopk"
    has_dead_latent_loss: ClassVar[bool] = True
    has_running_threshold: ClassVar[bool] = True

    def training_cut(self, scores: Scores, *, k: int) -> Float[Tensor, "#batch 1"]:
        """The (k * batch)-th highest score of the batch, exactly."""
        n_kept = k * scores.shape[0]
        if scores.device.type != "cpu":
            return torch.topk(scores.flatten(), n_kept, sorted=False).values.min().reshape(1, 1)
        flat = scores.detach().flatten().numpy()
        cut = np.partition(flat, flat.size - n_kept)[flat.size - n_kept]
        return scores.new_full((1, 1), float(cut))

    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:  # noqa: ARG002
        """Scores above the threshold, which is 0 before training."""
        return scores > threshold.to(scores.dtype)


class Matryoshka(BatchTopK):
    """Nested dictionaries (Bussmann et al., arXiv 2503.17547): each prefix of the latents reconstructs by itself.

    Latents are selected as for batchtopk; the loss averages over ``CrosscoderConfig.prefix_ends``.
    """

    name: ClassVar[str] = "matryoshka"


class L1(ActivationVariant):
    """f = relu(h); penalty lambda * sum_k f_k sum_m ||W_dec[k, m]||_2: the preset of arXiv 2604.25011."""

    name: ClassVar[str] = "l1"
    has_fixed_k: ClassVar[bool] = False
    has_l1_penalty: ClassVar[bool] = True

    def training_cut(self, scores: Scores, *, k: int) -> Float[Tensor, "#batch 1"]:  # noqa: ARG002
        """All positive scores are active."""
        return scores.new_zeros((1, 1))

    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:  # noqa: ARG002
        """All positive scores are active."""
        return scores > 0


class JumpReLU(ActivationVariant):
    """A learned threshold per latent (Rajamanoharan et al., arXiv 2407.14435), on the score in place of h.

    With the score s_k = h_k n_k and a threshold theta_k > 0, trained as its logarithm::

        f_k = h_k H(s_k - theta_k);    penalty = lambda / B sum_b sum_k H(s_bk - theta_k)

    The derivative of the step function H is zero almost everywhere. Training uses the pseudo-derivatives of the paper
    (equations 11 and 12) in its place, with the kernel K(u) = 1 where |u| < 1/2, 0 elsewhere, and a bandwidth eps::

        d(s H(s - theta)) / d theta := -(theta / eps) K((s - theta) / eps);    d H(s - theta) / d theta := -K(.) / eps

    so tokens near a threshold move it, including those just below. This package differs from the paper in three points.
    The score replaces h, so loss and thresholds do not depend on how the size of a latent is divided between encoder
    and decoder. A score at or below 0 is outside the window. The auxiliary loss of the other variants revives dead
    latents, in place of a pre-activation loss. As in the paper, the penalty has no derivative with respect to the
    encoder.
    """

    name: ClassVar[str] = "jumprelu"
    has_fixed_k: ClassVar[bool] = False
    has_dead_latent_loss: ClassVar[bool] = True
    has_latent_threshold: ClassVar[bool] = True

    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:  # noqa: ARG002
        """The same rule as in training."""
        return scores > threshold.to(scores.dtype)


VARIANTS: dict[str, ActivationVariant] = {
    variant.name: variant for variant in (BatchTopK(), JumpReLU(), L1(), Matryoshka(), TopK())
}


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
