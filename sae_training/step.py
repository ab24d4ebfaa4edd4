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

Several processes divide the latents or the rows of the batch (`sae_training.parallel`). The formulas hold for the whole: B
counts the rows of the batch, and the error is that of all latents.

With ``bfloat16``, the operands of the dense matrix products are rounded. Selection, sums, losses and the sparse
products, which are sums of gathered rows, stay in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_training.active import Active
from sae_training.parallel import Division, Share
from sae_training.parameters import Parameters, StepWeights
from sae_training.selection import Selector
from sae_training.variants import Jump, log_threshold_gradient, select_jump
from sae_training.weights import sum_of_norms


@dataclass(frozen=True)
class StepOutput:
    """Result of one step; the gradients are in ``grad`` of the parameters.

    ``norm_sum`` is the sum of all decoder norms. If it overflows, no latent is selected and the loss stays finite, so
    the checks watch it beside the loss. Of several processes, each has its own rows and latents in ``active``, ``x`` and
    ``error``; all numbers are those of the whole batch, which has ``n_rows`` rows.
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
    n_rows: int

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
    rows: Share | None = None,
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
        rows: Which rows of the batch ``x`` holds; None means all.
        sparse: Whether to compute with the active latents only. The result is the same up to rounding.
        bfloat16: Whether to round the operands of the matrix products.
    """
    decoder, division = parameters.decoder.detach(), selector.division
    rows = Share(0, x.shape[0], x.shape[0]) if rows is None else rows
    norm = sum_of_norms(decoder, parameters.widths)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        scores = selector.scores(x, parameters.encoder.detach(), parameters.b_enc.detach(), norm, bfloat16=bfloat16)
        threshold, jump, cut = parameters.log_threshold, None, None
        if threshold is None:
            active, cut = selector.select(scores, norm, sparse=sparse, n_rows=rows.n_rows)
        else:
            jump = select_jump(scores, norm, threshold.detach().exp(), weights.bandwidth, sparse=sparse)
            active = jump.active
        parts = active.split(parameters.prefixes)
        errors = prefix_errors(parts, parameters, x, division)
        error, share = errors[-1], 1.0 / (rows.n_rows * len(parts))
        mse = share * sum_of_squares(errors)
        penalty = aux = mse.new_zeros(())
        pulls, delta = _with_delta_loss(errors, weights)
        gradients: list[tuple[Tensor, Tensor, Tensor]] = []
        upstream = torch.zeros_like(x)
        # A latent belongs to all prefixes that end behind it, so its gradient sums the errors of these prefixes.
        for (part, place), pull in zip(reversed(parts), reversed(pulls), strict=True):
            upstream = upstream + 2.0 * share * pull
            if place.start == place.stop:  # the latents of another process
                continue
            values_grad = part.values_gradient(upstream, decoder[place]).to(x.dtype)
            decoder_grad = part.weight_gradient(part.values, upstream).to(x.dtype)
            if jump is not None:
                penalty = _jump_penalty(parameters, jump, (values_grad, upstream), norm, weights, rows.n_rows)
            if selector.variant.has_l1_penalty and weights.l1 > 0:
                coefficient = weights.penalty(weights.l1 / rows.n_rows, place), norm
                own, values_grad = _l1_penalty(part, (values_grad, decoder_grad), parameters, place, coefficient)
                penalty = penalty + own
            encoder_grad = part.weight_gradient(values_grad, x).to(x.dtype)
            gradients.insert(0, (encoder_grad, decoder_grad, part.column_sum(values_grad)))
        totals = gradients[0] if len(gradients) == 1 else tuple(map(torch.cat, zip(*gradients, strict=True)))
        which = _places(dead, weights.n_dead) if weights.aux > 0 else None
        if which is not None:
            aux = _add_dead_latent_loss_(
                totals, parameters, AuxBatch.of(x, error, rows, weights), which, (weights, division)
            )

    parameters.encoder.grad, parameters.decoder.grad, parameters.b_enc.grad = totals
    parameters.b_dec.grad = upstream.sum(dim=0)
    own = StepOutput(active, x, error, mse, penalty, aux, share * delta, norm.sum(), cut, rows.n_rows)
    return _of_all(own, division)


def _of_all(own: StepOutput, division: Division) -> StepOutput:
    """The numbers of the whole batch and of all latents, from those of each process."""
    if division.alone:
        return own
    partial = ("mse", "penalty", "aux", "delta") if division.by_tokens else ("penalty", "norm_sum")
    sums = division.sum_(torch.stack([getattr(own, name) for name in partial]))
    return replace(own, **dict(zip(partial, sums, strict=True)))


def _l1_penalty(
    part: Active,
    gradients: tuple[Tensor, Tensor],
    parameters: Parameters,
    place: slice,
    weight: tuple[float | Tensor, Tensor],
) -> tuple[Float[Tensor, ""], Tensor]:
    """The L1 penalty of a block, and the gradient of its values; its gradient of the decoder is added.

    ``gradients`` are those of the loss so far by the values and by the decoder; ``weight`` is the coefficient and the norms.
    """
    values_grad, decoder_grad = gradients
    coefficient, norm = weight
    per_latent, column_sum = coefficient * norm[place], part.column_sum(part.values)
    add_norm_gradient_(decoder_grad, parameters.decoder.detach()[place], parameters.widths, coefficient * column_sum)
    return (per_latent * column_sum).sum(), part.add_per_latent(values_grad, per_latent)


def _jump_penalty(
    parameters: Parameters,
    jump: Jump,
    gradients: tuple[Tensor, Float[Tensor, "batch d_all"]],
    norm: Float[Tensor, " d_sae"],
    weights: StepWeights,
    n_rows: int,
) -> Float[Tensor, ""]:
    """Compute the L0 penalty, and set the gradient of the thresholds.

    ``gradients`` are those of the loss by the active values and by the reconstruction.
    """
    values_grad, upstream = gradients
    assert parameters.log_threshold is not None, "only jumprelu has thresholds"
    below = jump.below.values_gradient(upstream, parameters.decoder.detach()).to(upstream.dtype)
    coefficient = weights.penalty(weights.l0 / n_rows, slice(None))
    threshold = parameters.log_threshold.detach().exp()
    parameters.log_threshold.grad = log_threshold_gradient(
        jump, (values_grad, below), norm, threshold, weights.bandwidth, coefficient
    )
    return (coefficient * jump.active.column_count().to(upstream.dtype)).sum()


def prefix_errors(
    parts: Sequence[tuple[Active, slice]], parameters: Parameters, x: Float[Tensor, "batch d_all"], division: Division
) -> list[Float[Tensor, "batch d_all"]]:
    """x_hat - x with the latents up to the end of each part; the last error is that of the whole dictionary."""
    errors = []
    error = parameters.b_dec.detach() - x
    for part, place in parts:
        empty = place.start == place.stop
        own = torch.zeros_like(x) if empty else part.decode(parameters.decoder.detach()[place]).to(x.dtype)
        error = division.sum_of_latents_(own).add_(error)
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


def _places(dead: Tensor | None, n_dead: int | None) -> Int[Tensor, " dead"] | None:
    """Indices of the dead latents, or None if there are none in any process."""
    if dead is not None and dead.dtype == torch.bool:
        dead = dead.nonzero().squeeze(1)
    return None if dead is None or (dead.numel() if n_dead is None else n_dead) == 0 else dead


@dataclass(frozen=True)
class AuxBatch:
    """What the auxiliary loss reconstructs.

    Attributes:
        x: Activations of the rows that it uses.
        residual: x - x_hat of these rows.
        n_rows: Number of such rows in all processes.
    """

    x: Float[Tensor, "batch d_all"]
    residual: Float[Tensor, "batch d_all"]
    n_rows: int

    @classmethod
    def of(cls, x: Tensor, error: Tensor, rows: Share, weights: StepWeights) -> "AuxBatch":
        """Every ``aux_stride``-th row of a batch."""
        every, n_every = rows.every(weights.aux_stride)
        return cls(x[every], -error[every], n_every)


def _add_dead_latent_loss_(
    totals: tuple[Tensor, ...],
    parameters: Parameters,
    batch: AuxBatch,
    which: Tensor,
    how: tuple[StepWeights, Division],
) -> Float[Tensor, ""]:
    """Compute the auxiliary loss, and add its gradients to the rows of the dead latents."""
    aux, gradients = dead_latent_loss(parameters, batch, which, *how)
    for total, revived in zip(totals, gradients, strict=True):
        total.index_add_(0, which, revived)
    return aux


def dead_latent_loss(
    parameters: Parameters, batch: AuxBatch, which: Tensor, weights: StepWeights, division: Division
) -> tuple[Float[Tensor, ""], tuple[Tensor, Tensor, Tensor]]:
    """The auxiliary loss of Gao et al. (arXiv 2406.04093) on the dead latents.

    The ``aux_k`` dead latents with the highest scores of a token reconstruct the residual of the other latents.

    Returns:
        The weighted loss over the rows of this process, and its gradients with respect to the encoder rows, decoder rows and encoder biases of the
        dead latents.
    """
    with torch.enable_grad():
        encoder = parameters.encoder.detach()[which].requires_grad_()
        decoder = parameters.decoder.detach()[which].requires_grad_()
        bias = parameters.b_enc.detach()[which].requires_grad_()
        feature_acts = torch.relu(torch.addmm(bias, batch.x, encoder.T))
        if (which.numel() if weights.n_dead is None else weights.n_dead) > weights.aux_k:
            norm = sum_of_norms(decoder.detach(), parameters.widths)
            scores = feature_acts.detach() * norm
            if division.by_latents:
                cut = division.cut(scores, weights.aux_k)
            else:
                cut = torch.topk(scores, weights.aux_k, dim=1).values[:, -1:]
            feature_acts = feature_acts * (scores >= cut)
        own = (feature_acts @ decoder).to(batch.residual.dtype)
        # the other processes' parts are fixed here, so the gradient is that by the sum of all parts
        error = division.sum_of_latents_(own.detach().clone()) if division.by_latents else own.detach()
        error = error - batch.residual
        share = weights.aux / batch.n_rows
        by_encoder, by_decoder, by_bias = torch.autograd.grad(own, (encoder, decoder, bias), share * (2 * error))
    return share * error.square().sum(), (by_encoder, by_decoder, by_bias)
