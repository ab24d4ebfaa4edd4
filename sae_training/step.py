"""One training step: the loss and its gradients, written out by hand.

With x the scaled and centered activations of a batch of B tokens, A the active features, n_k = sum_m ||W_dec[k, m]||_2::

    loss = 1/(P B) sum_b sum_p ||x - x_hat_p||^2  +  lambda/B sum_b sum_k A_bk n_k  +  alpha mean_b ||(x - x_hat) - e_hat||^2

x_hat_p takes the features before the p-th of P prefix ends; P = 1 but for matryoshka. The second term belongs to l1
(jumprelu has another penalty in its place, see `sae_training.variants.jumprelu`), the third (on dead features alone, with
x - x_hat held fixed, its mean over a part of the batch) to all others. Features designated as shared pay a part of the
penalty (Anthropic, "Insights on Crosscoder Model Diffing", February 2025).
Which features are active is held fixed in the gradient, as everywhere in the literature. Centering (subtracting a
fixed mean from x, and accounting for it in the biases) leaves the crosscoder and the loss as they are; it keeps a large
mean activation, which every residual stream has, out of the encoder's gradient.

With ``bfloat16`` the operands of the matrix products are rounded to it; selection, sums and losses stay float32, and so
do the sparse products, which are sums of gathered rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_training.active import Active
from sae_training.selection import Selector
from sae_training.variants.jumprelu import Jump, log_threshold_gradient, select_jump
from sae_training.weights import sum_of_norms


@dataclass(frozen=True)
class Parameters:
    """What training changes, over scaled and centered activations.

    Attributes:
        encoder: the crosscoder's own.
        decoder: the crosscoder's own.
        b_enc: of centered activations: the crosscoder's plus ``encoder @ center``.
        b_dec: of centered activations: the crosscoder's minus ``center``.
        widths: of the models, side by side in the columns.
        prefixes: ends of the nested dictionaries, increasing; ``(d_sae,)`` for a plain one.
        log_threshold: of every feature's score (jumprelu); None for the other variants.
    """

    encoder: nn.Parameter
    decoder: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    widths: tuple[int, ...]
    prefixes: tuple[int, ...]
    log_threshold: nn.Parameter | None = None

    def all(self) -> tuple[nn.Parameter, ...]:
        """For the optimizer, in a fixed order."""
        weights = (self.encoder, self.decoder, self.b_enc, self.b_dec)
        return weights if self.log_threshold is None else (*weights, self.log_threshold)


@dataclass(frozen=True)
class StepWeights:
    """Coefficients of one step.

    Attributes:
        l1: lambda of the l1 variant.
        aux: alpha.
        aux_k: dead features per token in the auxiliary loss.
        aux_stride: the auxiliary loss takes every so-manieth token of the batch.
        l0: lambda of the jumprelu variant.
        bandwidth: eps of the jumprelu variant.
        share: part of lambda that each feature pays; None where all pay the whole.
    """

    l1: float
    aux: float
    aux_k: int
    aux_stride: int = 1
    l0: float = 0.0
    bandwidth: float = 1.0
    share: Float[Tensor, " d_sae"] | None = None

    def penalty(self, coefficient: float, place: slice) -> float | Float[Tensor, " part"]:
        """A coefficient as the features of a block pay it."""
        return coefficient if self.share is None else coefficient * self.share[place]


@dataclass(frozen=True)
class StepOutput:
    """What one step computed; the gradients are in the parameters' ``grad``.

    ``norm_sum`` is the sum of all decoder norms. Where it overflows no feature is chosen and the loss looks healthy,
    so it has to be watched beside the loss.
    """

    active: Active
    x: Float[Tensor, "batch d_all"]
    error: Float[Tensor, "batch d_all"]
    mse: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    norm_sum: Float[Tensor, ""]
    cut: Float[Tensor, ""] | None

    @property
    def loss(self) -> Float[Tensor, ""]:
        """All terms together."""
        return self.mse + self.penalty + self.aux


@torch.no_grad()
def loss_and_gradients(
    parameters: Parameters,
    x: Float[Tensor, "batch d_all"],
    selector: Selector,
    weights: StepWeights,
    *,
    dead: Bool[Tensor, " d_sae"] | Int[Tensor, " dead"] | None = None,
    sparse: bool = False,
    bfloat16: bool = False,
) -> StepOutput:
    """Compute the loss and set the gradient of every parameter.

    Args:
        parameters: their ``grad`` is replaced.
        x: activations, scaled and centered.
        selector: chooses the active features.
        weights: coefficients of the step.
        dead: the features that the auxiliary loss revives, as a mask or as their places (which the host then does not
            wait for); None for none.
        sparse: work on the active features alone (CPU); the result is the same up to rounding.
        bfloat16: round the operands of the matrix products.
    """
    decoder = parameters.decoder.detach()
    norm = sum_of_norms(decoder, parameters.widths)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        scores = _scores(parameters, x, selector, norm, bfloat16=bfloat16)
        jump, cut = None, None
        if parameters.log_threshold is None:
            active, cut = selector.select(scores, norm, sparse=sparse)
        else:
            jump = select_jump(scores, norm, parameters.log_threshold.detach().exp(), weights.bandwidth, sparse=sparse)
            active = jump.active

        parts = active.split(parameters.prefixes)
        errors = prefix_errors(parts, parameters, x)
        error, share = errors[-1], 1.0 / (x.shape[0] * len(parts))
        mse = share * sum_of_squares(errors)
        penalty = aux = mse.new_zeros(())
        gradients: list[tuple[Tensor, Tensor, Tensor]] = []
        upstream = torch.zeros_like(x)
        # A feature is in every prefix that reaches it: its gradient sums the errors from its own prefix to the last.
        for (part, place), prefix_error in zip(reversed(parts), reversed(errors), strict=True):
            upstream = upstream + 2.0 * share * prefix_error
            values_grad = part.values_gradient(upstream, decoder[place]).to(x.dtype)
            decoder_grad = part.weight_gradient(part.values, upstream).to(x.dtype)
            if jump is not None:
                penalty = _jump_penalty(parameters, jump, values_grad, upstream, norm, weights)
            if selector.variant.has_l1_penalty and weights.l1 > 0:
                coefficient = weights.penalty(weights.l1 / x.shape[0], place)
                per_feature = coefficient * norm[place]
                column_sum = part.column_sum(part.values)
                penalty = penalty + (per_feature * column_sum).sum()
                values_grad = part.add_per_feature(values_grad, per_feature)
                add_norm_gradient_(decoder_grad, decoder[place], parameters.widths, coefficient * column_sum)
            encoder_grad = part.weight_gradient(values_grad, x).to(x.dtype)
            gradients.insert(0, (encoder_grad, decoder_grad, part.column_sum(values_grad)))
        totals = gradients[0] if len(gradients) == 1 else tuple(map(torch.cat, zip(*gradients, strict=True)))
        which = _places(dead) if weights.aux > 0 else None
        if which is not None:
            aux = _add_dead_feature_loss_(totals, parameters, x, error, which, weights)

    parameters.encoder.grad, parameters.decoder.grad, parameters.b_enc.grad = totals
    parameters.b_dec.grad = upstream.sum(dim=0)
    return StepOutput(active, x, error, mse, penalty, aux, norm.sum(), cut)


def _scores(
    parameters: Parameters,
    x: Float[Tensor, "batch d_all"],
    selector: Selector,
    norm: Float[Tensor, " d_sae"],
    *,
    bfloat16: bool,
) -> Float[Tensor, "batch d_sae"]:
    encoder, b_enc = parameters.encoder.detach(), parameters.b_enc.detach()
    if not bfloat16:
        return selector.scores(x, encoder, b_enc, norm)
    return torch.add(x @ (encoder * norm[:, None]).T, b_enc * norm)


def _jump_penalty(
    parameters: Parameters,
    jump: Jump,
    values_grad: Tensor,
    upstream: Float[Tensor, "batch d_all"],
    norm: Float[Tensor, " d_sae"],
    weights: StepWeights,
) -> Float[Tensor, ""]:
    """The L0 penalty; sets the thresholds' gradient."""
    assert parameters.log_threshold is not None, "only jumprelu has thresholds"
    below = jump.below.values_gradient(upstream, parameters.decoder.detach()).to(upstream.dtype)
    coefficient = weights.penalty(weights.l0 / upstream.shape[0], slice(None))
    threshold = parameters.log_threshold.detach().exp()
    parameters.log_threshold.grad = log_threshold_gradient(
        jump, (values_grad, below), norm, threshold, weights.bandwidth, coefficient
    )
    return (coefficient * jump.active.column_count().to(upstream.dtype)).sum()


def prefix_errors(
    parts: Sequence[tuple[Active, slice]], parameters: Parameters, x: Float[Tensor, "batch d_all"]
) -> list[Float[Tensor, "batch d_all"]]:
    """x_hat - x with the features up to the end of each part; the last is the whole dictionary's."""
    errors = []
    error = parameters.b_dec.detach() - x
    for part, place in parts:
        error = part.decode(parameters.decoder.detach()[place]).to(x.dtype).add_(error)
        errors.append(error)
    return errors


def sum_of_squares(errors: Sequence[Float[Tensor, "batch d_all"]]) -> Float[Tensor, ""]:
    """The sum of all squared entries."""
    return torch.stack([error.square().sum() for error in errors]).sum()


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


def _places(dead: Tensor | None) -> Int[Tensor, " dead"] | None:
    """Places of the dead features, None where there are none."""
    if dead is not None and dead.dtype == torch.bool:
        dead = dead.nonzero().squeeze(1)
    return None if dead is None or dead.numel() == 0 else dead


def _add_dead_feature_loss_(
    totals: tuple[Tensor, ...],
    parameters: Parameters,
    x: Float[Tensor, "batch d_all"],
    error: Float[Tensor, "batch d_all"],
    which: Int[Tensor, " dead"],
    weights: StepWeights,
) -> Float[Tensor, ""]:
    """Add the auxiliary loss's gradients to the dead features' rows."""
    rows = slice(None, None, weights.aux_stride)
    aux, gradients = dead_feature_loss(parameters, x[rows], -error[rows], which, weights)
    for total, revived in zip(totals, gradients, strict=True):
        total.index_add_(0, which, revived)
    return aux


def dead_feature_loss(
    parameters: Parameters,
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
        encoder = parameters.encoder.detach()[which].requires_grad_()
        decoder = parameters.decoder.detach()[which].requires_grad_()
        bias = parameters.b_enc.detach()[which].requires_grad_()
        feature_acts = torch.relu(torch.addmm(bias, x, encoder.T))
        if which.numel() > weights.aux_k:
            norm = sum_of_norms(decoder.detach(), parameters.widths)
            scores = feature_acts.detach() * norm
            cut = torch.topk(scores, weights.aux_k, dim=1).values[:, -1:]
            feature_acts = feature_acts * (scores >= cut)
        error = feature_acts @ decoder - residual
        loss = weights.aux / x.shape[0] * error.square().sum()
        by_encoder, by_decoder, by_bias = torch.autograd.grad(loss, (encoder, decoder, bias))
    return loss.detach(), (by_encoder, by_decoder, by_bias)
