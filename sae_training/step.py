"""One training step: the loss and its gradients, written out by hand.

With x the scaled activations of a batch of B tokens, A the active features, n_k = sum_m ||W_dec[k, m]||_2::

    loss = 1/B sum_b ||x - x_hat||^2  +  lambda/B sum_b sum_k A_bk n_k  +  alpha/B sum_b ||(x - x_hat) - e_hat||^2

The second term belongs to l1, the third (on dead features alone, with x - x_hat held fixed) to topk and batchtopk.
Which features are active is held fixed in the gradient, as everywhere in the literature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_training.active import Active
from sae_training.crosscoder import Crosscoder, sum_of_norms
from sae_training.selection import Selector


@dataclass(frozen=True)
class StepWeights:
    """Coefficients of one step."""

    l1: float
    aux: float
    aux_k: int


@dataclass(frozen=True)
class StepOutput:
    """What one step computed; the gradients are in the parameters' ``grad``."""

    active: Active
    x: Float[Tensor, "batch d_all"]
    error: Float[Tensor, "batch d_all"]
    mse: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    cut: Float[Tensor, ""] | None

    @property
    def loss(self) -> Float[Tensor, ""]:
        """All terms together."""
        return self.mse + self.penalty + self.aux


@torch.no_grad()
def loss_and_gradients(
    crosscoder: Crosscoder,
    x: Float[Tensor, "batch d_all"],
    selector: Selector,
    weights: StepWeights,
    *,
    dead: Bool[Tensor, " d_sae"] | None = None,
    sparse: bool = False,
) -> StepOutput:
    """Compute the loss on scaled activations and set the gradient of every parameter.

    Args:
        crosscoder: its parameters' ``grad`` is replaced.
        x: scaled activations, see `Crosscoder.scaled`.
        selector: chooses the active features.
        weights: coefficients of the step.
        dead: the features that the auxiliary loss revives; None for none.
        sparse: work on the active features alone (CPU); the result is the same up to rounding.
    """
    encoder, decoder = crosscoder.encoder.detach(), crosscoder.decoder.detach()
    widths = crosscoder.config.widths
    norm = sum_of_norms(decoder, widths)
    scores = selector.scores(x, encoder, crosscoder.b_enc.detach(), norm)
    active, cut = selector.select(scores, norm, sparse=sparse)

    error = active.decode(decoder).add_(crosscoder.b_dec_flat.detach()).sub_(x)
    n_rows = x.shape[0]
    mse = error.square().sum() / n_rows
    upstream = error * (2.0 / n_rows)
    values_grad = active.values_gradient(upstream, decoder)
    decoder_grad = active.weight_gradient(active.values, upstream)
    penalty = aux = mse.new_zeros(())
    if selector.variant.has_l1_penalty and weights.l1 > 0:
        weight_per_feature = weights.l1 / n_rows * norm
        column_sum = active.column_sum(active.values)
        penalty = (weight_per_feature * column_sum).sum()
        values_grad = active.add_per_feature(values_grad, weight_per_feature)
        add_norm_gradient_(decoder_grad, decoder, widths, weights.l1 / n_rows * column_sum)
    encoder_grad = active.weight_gradient(values_grad, x)
    b_enc_grad = active.column_sum(values_grad)

    if dead is not None and weights.aux > 0 and bool(dead.any()):
        which = dead.nonzero().squeeze(1)
        aux, grads = dead_feature_loss(crosscoder, x, -error, which, weights)
        for total, part in zip((encoder_grad, decoder_grad, b_enc_grad), grads, strict=True):
            total.index_add_(0, which, part)

    crosscoder.encoder.grad, crosscoder.decoder.grad = encoder_grad, decoder_grad
    crosscoder.b_enc.grad, crosscoder.b_dec_flat.grad = b_enc_grad, upstream.sum(dim=0)
    return StepOutput(active, x, error, mse, penalty, aux, cut)


def add_norm_gradient_(
    decoder_grad: Float[Tensor, "d_sae d_all"],
    decoder: Float[Tensor, "d_sae d_all"],
    widths: Sequence[int],
    weight: Float[Tensor, " d_sae"],
) -> None:
    """Add the gradient of sum_k weight_k sum_m ||W[k, m]||_2: weight_k W[k, m] / ||W[k, m]||, 0 at 0."""
    parts = zip(decoder_grad.split(list(widths), dim=1), decoder.split(list(widths), dim=1), strict=True)
    for grad, part in parts:
        norm = torch.linalg.vector_norm(part, dim=1)
        factor = torch.where(norm > 0, weight / norm, 0.0)
        grad.addcmul_(part, factor[:, None])


def dead_feature_loss(
    crosscoder: Crosscoder,
    x: Float[Tensor, "batch d_all"],
    residual: Float[Tensor, "batch d_all"],
    which: Tensor,
    weights: StepWeights,
) -> tuple[Float[Tensor, ""], tuple[Tensor, Tensor, Tensor]]:
    """The auxiliary loss (Gao et al., arXiv 2406.04093) on the dead features' columns alone.

    The dead features with the ``aux_k`` highest scores per token reconstruct what the living ones left over.

    Returns:
        The weighted loss and its gradients by the dead features' encoder rows, decoder rows and encoder biases.
    """
    with torch.enable_grad():
        encoder = crosscoder.encoder.detach()[which].requires_grad_()
        decoder = crosscoder.decoder.detach()[which].requires_grad_()
        bias = crosscoder.b_enc.detach()[which].requires_grad_()
        feature_acts = torch.relu(torch.addmm(bias, x, encoder.T))
        if which.numel() > weights.aux_k:
            norm = sum_of_norms(decoder.detach(), crosscoder.config.widths)
            scores = feature_acts.detach() * norm
            cut = torch.topk(scores, weights.aux_k, dim=1).values[:, -1:]
            feature_acts = feature_acts * (scores >= cut)
        error = feature_acts @ decoder - residual
        loss = weights.aux / x.shape[0] * error.square().sum()
        by_encoder, by_decoder, by_bias = torch.autograd.grad(loss, (encoder, decoder, bias))
    return loss.detach(), (by_encoder, by_decoder, by_bias)
