"""One training step: the loss and its gradients, derived by hand.

With x the scaled and centered activations of B tokens, A the latent activations and n_k = sum_m ||W_dec[k, m]||_2::

    loss = 1/(P B) sum_b sum_p ||x - x_hat_p||^2  +  lambda/B sum_b sum_k A_bk n_k  +  alpha mean_b ||(x - x_hat) - e_hat||^2

x_hat_p uses the latents before the p-th of P prefix ends; P = 1 except for matryoshka. Only l1 has the second term;
jumprelu has another penalty in its place (`sae_training.variants.JumpReLU`). All variants except l1 have the third
term. It trains only dead latents, holds x - x_hat fixed, and averages over a part of the batch. Latents designated as
shared pay a part of the penalty (Anthropic, "Insights on Crosscoder Model Diffing", February 2025).

The delta loss of Delta-Crosscoder (arXiv 2603.04426) is a further term, off by default. With e_m = x_hat_m - x_m in units
that all models share::

    + delta/B sum_b mean over pairs (m, n) ||e_m - e_n||^2  =  delta/B sum_b 2/(M-1) sum_m ||e_m - mean_n e_n||^2

For two models, this is the error of the reconstructed difference. The paper lets only non-shared latents reconstruct the
difference; here every latent whose decoders differ does, which are all except those designated as shared. The bias in
the difference and more than two models are ours. The paper's two sparsity budgets and its text pairs are not part of it.

The gradient holds the set of active latents fixed, as is usual. Centering subtracts a fixed mean from x and corrects
the biases for it, so the crosscoder and the loss do not change. It keeps the large mean activation of residual streams
out of the gradient of the encoder.

With ``bfloat16``, the operands of the dense matrix products are rounded. Selection, sums, losses and the sparse
products, which are sums of gathered rows, stay in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_training.active import Active
from sae_training.selection import Selector
from sae_training.variants import Jump, log_threshold_gradient, select_jump
from sae_training.weights import sum_of_norms


@dataclass(frozen=True)
class Parameters:
    """The trained parameters, for scaled and centered activations.

    Attributes:
        encoder: Encoder of the crosscoder.
        decoder: Decoder of the crosscoder.
        b_enc: Encoder bias of the crosscoder plus ``encoder @ center``.
        b_dec: Decoder bias of the crosscoder minus ``center``.
        widths: Width of each source in the columns.
        prefixes: Ends of the nested dictionaries, increasing; ``(d_sae,)`` without nesting.
        log_threshold: Logarithm of the threshold on each latent's score (jumprelu); None for other variants.
    """

    encoder: nn.Parameter
    decoder: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    widths: tuple[int, ...]
    prefixes: tuple[int, ...]
    log_threshold: nn.Parameter | None = None

    def all(self) -> tuple[nn.Parameter, ...]:
        """All parameters in the order of the optimizer."""
        weights = (self.encoder, self.decoder, self.b_enc, self.b_dec)
        return weights if self.log_threshold is None else (*weights, self.log_threshold)


@dataclass(frozen=True)
class StepWeights:
    """Coefficients of one step.

    Attributes:
        l1: Coefficient lambda of the l1 variant.
        aux: Coefficient alpha of the auxiliary loss.
        aux_k: Number of dead latents per token in the auxiliary loss.
        aux_stride: The auxiliary loss uses every ``aux_stride``-th token.
        l0: Coefficient lambda of the jumprelu variant.
        bandwidth: Bandwidth eps of the jumprelu variant.
        share: ``[d_sae]``, share of lambda that each latent pays; None if all pay the whole.
        delta: Coefficient of the delta loss.
        units: ``[model site]``, scale of each source over the mean of its site, for the delta loss.
    """

    l1: float
    aux: float
    aux_k: int
    aux_stride: int = 1
    l0: float = 0.0
    bandwidth: float = 1.0
    share: Float[Tensor, " d_sae"] | None = None
    delta: float = 0.0
    units: Float[Tensor, "model site"] | None = None

    def penalty(self, coefficient: float, place: slice) -> float | Float[Tensor, " part"]:
        """The coefficient that the latents of a block pay."""
        return coefficient if self.share is None else coefficient * self.share[place]


@dataclass(frozen=True)
class StepOutput:
    """Result of one step; the gradients are in ``grad`` of the parameters.

    ``norm_sum`` is the sum of all decoder norms. If it overflows, no latent is selected and the loss stays finite, so
    the checks watch it beside the loss.
    """

    active: Active
    x: Float[Tensor, "batch d_all"]
    error: Float[Tensor, "batch d_all"]
    mse: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    delta: Float[Tensor, ""]
    norm_sum: Float[Tensor, ""]
    cut: Float[Tensor, ""] | None

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Sum of all terms."""
        return self.mse + self.penalty + self.aux + self.delta


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
        parameters: Parameters, whose ``grad`` is replaced.
        x: Scaled and centered activations.
        selector: Selects the active latents.
        weights: Coefficients of the step.
        dead: Latents that the auxiliary loss revives, as a mask or as indices, or None. With indices the host does not
            wait for the device.
        sparse: Whether to compute with the active latents only. The result is the same up to rounding.
        bfloat16: Whether to round the operands of the matrix products.
    """
    decoder = parameters.decoder.detach()
    norm = sum_of_norms(decoder, parameters.widths)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        encoder, b_enc = parameters.encoder.detach(), parameters.b_enc.detach()
        scores = selector.scores(x, encoder, b_enc, norm, bfloat16=bfloat16)
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
        pulls, delta = _with_delta_loss(errors, weights)
        gradients: list[tuple[Tensor, Tensor, Tensor]] = []
        upstream = torch.zeros_like(x)
        # A latent belongs to all prefixes that end behind it, so its gradient sums the errors of these prefixes.
        for (part, place), pull in zip(reversed(parts), reversed(pulls), strict=True):
            upstream = upstream + 2.0 * share * pull
            values_grad = part.values_gradient(upstream, decoder[place]).to(x.dtype)
            decoder_grad = part.weight_gradient(part.values, upstream).to(x.dtype)
            if jump is not None:
                penalty = _jump_penalty(parameters, jump, values_grad, upstream, norm, weights)
            if selector.variant.has_l1_penalty and weights.l1 > 0:
                coefficient = weights.penalty(weights.l1 / x.shape[0], place)
                per_latent = coefficient * norm[place]
                column_sum = part.column_sum(part.values)
                penalty = penalty + (per_latent * column_sum).sum()
                values_grad = part.add_per_latent(values_grad, per_latent)
                add_norm_gradient_(decoder_grad, decoder[place], parameters.widths, coefficient * column_sum)
            encoder_grad = part.weight_gradient(values_grad, x).to(x.dtype)
            gradients.insert(0, (encoder_grad, decoder_grad, part.column_sum(values_grad)))
        totals = gradients[0] if len(gradients) == 1 else tuple(map(torch.cat, zip(*gradients, strict=True)))
        which = _places(dead) if weights.aux > 0 else None
        if which is not None:
            aux = _add_dead_latent_loss_(totals, parameters, x, error, which, weights)

    parameters.encoder.grad, parameters.decoder.grad, parameters.b_enc.grad = totals
    parameters.b_dec.grad = upstream.sum(dim=0)
    return StepOutput(active, x, error, mse, penalty, aux, share * delta, norm.sum(), cut)


def _jump_penalty(
    parameters: Parameters,
    jump: Jump,
    values_grad: Tensor,
    upstream: Float[Tensor, "batch d_all"],
    norm: Float[Tensor, " d_sae"],
    weights: StepWeights,
) -> Float[Tensor, ""]:
    """Compute the L0 penalty, and set the gradient of the thresholds."""
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
    """x_hat - x with the latents up to the end of each part; the last error is that of the whole dictionary."""
    errors = []
    error = parameters.b_dec.detach() - x
    for part, place in parts:
        error = part.decode(parameters.decoder.detach()[place]).to(x.dtype).add_(error)
        errors.append(error)
    return errors


def sum_of_squares(errors: Sequence[Float[Tensor, "batch d_all"]]) -> Float[Tensor, ""]:
    """Sum of all squared entries."""
    return torch.stack([error.square().sum() for error in errors]).sum()


def _with_delta_loss(
    errors: Sequence[Float[Tensor, "batch d_all"]], weights: StepWeights
) -> tuple[list[Float[Tensor, "batch d_all"]], Float[Tensor, ""]]:
    """Half the gradient of every prefix's loss by its reconstruction, and the weighted delta loss, both summed over tokens."""
    if weights.units is None:
        return list(errors), errors[0].new_zeros(())
    terms = [delta_loss(error, weights.units) for error in errors]
    pulls = [error + 0.5 * weights.delta * gradient for error, (_, gradient) in zip(errors, terms, strict=True)]
    return pulls, weights.delta * torch.stack([value for value, _ in terms]).sum()


def delta_loss(
    error: Float[Tensor, "batch d_all"], units: Float[Tensor, "model site"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch d_all"]]:
    """The delta loss summed over tokens, and its gradient by the error."""
    n_models, n_sites = units.shape
    each = units[:, :, None]
    stacked = error.unflatten(1, (n_models, n_sites, -1)) * each
    apart = stacked - stacked.mean(dim=1, keepdim=True)
    return 2 / (n_models - 1) * apart.square().sum(), (4 / (n_models - 1) * apart * each).flatten(1)


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
    """Indices of the dead latents, or None if there are none."""
    if dead is not None and dead.dtype == torch.bool:
        dead = dead.nonzero().squeeze(1)
    return None if dead is None or dead.numel() == 0 else dead


def _add_dead_latent_loss_(
    totals: tuple[Tensor, ...],
    parameters: Parameters,
    x: Float[Tensor, "batch d_all"],
    error: Float[Tensor, "batch d_all"],
    which: Int[Tensor, " dead"],
    weights: StepWeights,
) -> Float[Tensor, ""]:
    """Compute the auxiliary loss, and add its gradients to the rows of the dead latents."""
    rows = slice(None, None, weights.aux_stride)
    aux, gradients = dead_latent_loss(parameters, x[rows], -error[rows], which, weights)
    for total, revived in zip(totals, gradients, strict=True):
        total.index_add_(0, which, revived)
    return aux


def dead_latent_loss(
    parameters: Parameters,
    x: Float[Tensor, "batch d_all"],
    residual: Float[Tensor, "batch d_all"],
    which: Tensor,
    weights: StepWeights,
) -> tuple[Float[Tensor, ""], tuple[Tensor, Tensor, Tensor]]:
    """The auxiliary loss of Gao et al. (arXiv 2406.04093) on the dead latents.

    The ``aux_k`` dead latents with the highest scores of a token reconstruct the residual of the other latents.

    Returns:
        The weighted loss, and its gradients with respect to the encoder rows, decoder rows and encoder biases of the
        dead latents.
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
