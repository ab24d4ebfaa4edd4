"""The step with derived gradients against automatic differentiation of the dense formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sae_training import Crosscoder, CrosscoderConfig
from sae_training.selection import Selector
from sae_training.step import Parameters, StepWeights, loss_and_gradients

SHARED_PENALTY = 0.25
PARAMETERS = ("encoder", "decoder", "b_enc", "b_dec_flat")


def random_crosscoder(variant: str, widths: tuple[int, ...] = (5, 7, 4), d_sae: int = 24, k: int = 4) -> Crosscoder:
    config = CrosscoderConfig(n_models=len(widths), d_model=widths, d_sae=d_sae, variant=variant, k=k)
    crosscoder = Crosscoder(config).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return crosscoder


def between(error: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Mean over tokens and over pairs of models of the squared difference of their errors."""
    parts = [part * unit for part, unit in zip(error.chunk(len(units), dim=1), units.flatten(), strict=True)]
    pairs = [(one - other).square().sum(dim=1).mean() for n, one in enumerate(parts) for other in parts[:n]]
    return torch.stack(pairs).mean()


def dense_loss(crosscoder: Crosscoder, x: torch.Tensor, l1: float, aux: float, aux_k: int, dead: torch.Tensor | None):
    """The loss of step.py's docstring, implemented without shared code, for autograd."""
    config = crosscoder.config
    acts = torch.relu(x @ crosscoder.encoder.T + crosscoder.b_enc)
    norm = sum(part.norm(dim=1) for part in crosscoder.decoder.split(list(config.widths), dim=1))
    scores = (acts * norm).detach().numpy()
    keep = scores > 0
    if config.variant in ("batchtopk", "matryoshka"):
        keep &= scores >= np.sort(scores.ravel())[-config.k * len(x)]
    if config.variant == "topk":
        keep &= scores >= np.sort(scores, axis=1)[:, -config.k][:, None]
    kept = acts * torch.from_numpy(keep)
    error = kept @ crosscoder.decoder + crosscoder.b_dec_flat - x
    loss = error.square().sum(dim=1).mean()
    if config.variant == "matryoshka":
        losses = []
        for end in config.prefix_ends:
            x_hat = kept[:, :end] @ crosscoder.decoder[:end] + crosscoder.b_dec_flat
            losses.append((x_hat - x).square().sum(dim=1).mean())
        loss = torch.stack(losses).mean()
    if config.variant == "l1":
        paid = torch.ones(config.d_sae, dtype=torch.float64)
        paid[config.shared_rows] = SHARED_PENALTY
        loss = loss + l1 * (kept * norm * paid).sum(dim=1).mean()
    if dead is not None:
        dead_scores = np.where(dead.numpy(), scores, -np.inf)
        cut = np.sort(dead_scores, axis=1)[:, -min(aux_k, int(dead.sum()))][:, None]
        revived = acts * torch.from_numpy(dead_scores >= cut)
        left = (revived @ crosscoder.decoder + error.detach()).square().sum(dim=1)
        loss = loss + aux * left[::3].mean()
    return loss, kept


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("with_dead", [False, True], ids=["alive", "some dead"])
@pytest.mark.parametrize("variant", ["batchtopk", "l1", "matryoshka", "topk"])
def test_loss_and_gradients_equal_autograd(variant: str, with_dead: bool, sparse: bool) -> None:
    crosscoder = random_crosscoder(variant)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with_aux = with_dead and variant != "l1"
    dead = torch.arange(24) % 3 == 0 if with_aux else None
    weights = StepWeights(l1=0.3, aux=0.5 if with_aux else 0.0, aux_k=3, aux_stride=3)

    expected, kept = dense_loss(crosscoder, x, 0.3, 0.5, 3, dead)
    gradients = torch.autograd.grad(expected, [getattr(crosscoder, name) for name in PARAMETERS])
    parameters = Parameters(
        *(getattr(crosscoder, name) for name in PARAMETERS), crosscoder.config.widths, crosscoder.config.prefix_ends
    )
    output = loss_and_gradients(
        parameters, x, Selector(crosscoder.variant, crosscoder.config.k), weights, dead=dead, sparse=sparse
    )

    torch.testing.assert_close(output.loss, expected.detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(output.active.column_count(), (kept > 0).sum(dim=0))
    for name, gradient in zip(PARAMETERS, gradients, strict=True):
        torch.testing.assert_close(getattr(crosscoder, name).grad, gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("variant", ["batchtopk", "matryoshka"])
def test_the_delta_loss_equals_autograd(variant: str, sparse: bool) -> None:
    crosscoder = random_crosscoder(variant, widths=(5, 5, 5))
    config, x = crosscoder.config, torch.randn(32, 15, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    units = torch.tensor([[0.8], [1.0], [1.2]], dtype=torch.float64)
    plain, kept = dense_loss(crosscoder, x, 0.0, 0.0, 3, None)
    errors = [kept[:, :end] @ crosscoder.decoder[:end] + crosscoder.b_dec_flat - x for end in config.prefix_ends]
    expected = plain + 0.7 * torch.stack([between(error, units) for error in errors]).mean()
    gradients = torch.autograd.grad(expected, [getattr(crosscoder, name) for name in PARAMETERS])
    parameters = Parameters(*(getattr(crosscoder, name) for name in PARAMETERS), config.widths, config.prefix_ends)
    weights = StepWeights(l1=0.0, aux=0.0, aux_k=3, delta=0.7, units=units)
    output = loss_and_gradients(parameters, x, Selector(crosscoder.variant, config.k), weights, sparse=sparse)
    torch.testing.assert_close(output.loss, expected.detach(), rtol=1e-12, atol=1e-12)
    for name, gradient in zip(PARAMETERS, gradients, strict=True):
        torch.testing.assert_close(getattr(crosscoder, name).grad, gradient, rtol=1e-11, atol=1e-12)


class Jump(torch.autograd.Function):
    """z H(z - theta) and H(z - theta) with the pseudo-derivatives of arXiv 2407.14435, appendix J, as printed there."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, theta: torch.Tensor, width: float) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(z, theta)
        ctx.width = width
        step = (z > theta).to(z.dtype)
        return z * step, step

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        by_jump, by_step = upstream
        z, theta = ctx.saved_tensors
        u = (z - theta) / ctx.width
        window = ((u < 0.5) & (u > -0.5) & (z > 0)).to(z.dtype)
        by_theta = -(theta / ctx.width) * window * by_jump - window / ctx.width * by_step
        return by_jump * (z > theta), by_theta.sum(dim=0), None


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("n_shared", [0, 6])
def test_jumprelu_equals_autograd_with_pseudo_derivatives(n_shared: int, sparse: bool) -> None:
    config = CrosscoderConfig(n_models=3, d_model=5, d_sae=24, variant="jumprelu", n_shared=n_shared)
    crosscoder = Crosscoder(config).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    log_threshold = torch.nn.Parameter(torch.linspace(-2.0, 3.0, 24, dtype=torch.float64))
    x = torch.randn(40, 15, generator=generator, dtype=torch.float64)
    dead = torch.arange(24) % 5 == 0
    bandwidth, lam, alpha = 4.0, 0.7, 0.5

    acts = torch.relu(x @ crosscoder.encoder.T + crosscoder.b_enc)
    norm = torch.stack([part.norm(dim=1) for part in crosscoder.decoder.split(5, dim=1)]).sum(dim=0).detach()
    jumped, on = Jump.apply(acts * norm, log_threshold.exp(), bandwidth)  # pyright: ignore[reportGeneralTypeIssues]
    error = jumped / norm @ crosscoder.decoder + crosscoder.b_dec_flat - x
    paid = torch.ones(24, dtype=torch.float64)
    paid[:n_shared] = SHARED_PENALTY
    left = (acts * dead) @ crosscoder.decoder + error.detach()
    expected = error.square().sum(dim=1).mean() + lam * (on * paid).sum(dim=1).mean()
    expected = expected + alpha * left.square().sum(dim=1)[::2].mean()
    names = [getattr(crosscoder, name) for name in PARAMETERS]
    gradients = torch.autograd.grad(expected, [*names, log_threshold])

    parameters = Parameters(*names, config.widths, config.prefix_ends, log_threshold)
    share = paid if n_shared else None
    weights = StepWeights(l1=9.0, aux=alpha, aux_k=99, aux_stride=2, l0=lam, bandwidth=bandwidth, share=share)
    selector = Selector(crosscoder.variant, config.k)
    output = loss_and_gradients(parameters, x, selector, weights, dead=dead.nonzero().squeeze(1), sparse=sparse)

    near = ((acts * norm - log_threshold.exp()).abs() < bandwidth / 2) & (acts > 0)
    assert bool((near & (on == 0)).any()), "the case must have entries just below their threshold"
    assert bool((near & (on == 1)).any())
    torch.testing.assert_close(output.loss, expected.detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(output.active.column_count(), on.sum(dim=0).long())
    for parameter, gradient in zip(parameters.all(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_latents_designated_as_shared_pay_less(sparse: bool) -> None:
    config = CrosscoderConfig(n_models=3, d_model=5, d_sae=24, variant="l1", n_shared=8, n_dedicated=(1, 0, 2))
    crosscoder = Crosscoder(config).double()
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(32, 15, generator=generator, dtype=torch.float64)
    expected, _ = dense_loss(crosscoder, x, 0.3, 0.0, 3, None)
    gradients = torch.autograd.grad(expected, [getattr(crosscoder, name) for name in PARAMETERS])
    parameters = Parameters(*(getattr(crosscoder, name) for name in PARAMETERS), config.widths, config.prefix_ends)
    share = torch.ones(24, dtype=torch.float64)
    share[3:11] = SHARED_PENALTY
    weights = StepWeights(l1=0.3, aux=0.0, aux_k=3, share=share)
    output = loss_and_gradients(parameters, x, Selector(crosscoder.variant, 3), weights, sparse=sparse)
    torch.testing.assert_close(output.loss, expected.detach(), rtol=1e-12, atol=1e-12)
    for name, gradient in zip(PARAMETERS, gradients, strict=True):
        # A decoder of dedicated latents is 0 in other models: autograd's derivative of a norm at 0 is 0, as in the step.
        torch.testing.assert_close(getattr(crosscoder, name).grad, gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("variant", ["batchtopk", "jumprelu", "l1", "matryoshka", "topk"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_bfloat16_products_give_float32_sums_near_the_exact_ones(variant: str, sparse: bool) -> None:
    results = []
    for bfloat16 in (False, True):
        crosscoder = random_crosscoder(variant).float()
        own = torch.nn.Parameter(torch.zeros(24)) if variant == "jumprelu" else None
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
        parameters = Parameters(
            *(getattr(crosscoder, name) for name in PARAMETERS),
            crosscoder.config.widths,
            crosscoder.config.prefix_ends,
            own,
        )
        weights = StepWeights(l1=0.3, aux=0.5, aux_k=3, l0=0.5, bandwidth=1.0)
        selector = Selector(crosscoder.variant, crosscoder.config.k)
        dead = torch.arange(24) % 3 == 0 if variant != "l1" else None
        output = loss_and_gradients(parameters, x, selector, weights, dead=dead, sparse=sparse, bfloat16=bfloat16)
        for tensor in (output.mse, output.penalty, output.aux, output.error, *(p.grad for p in parameters.all())):
            assert tensor is not None
            assert tensor.dtype == torch.float32
        results.append((output, [parameter.grad.clone() for parameter in parameters.all()]))  # pyright: ignore
    (exact, exact_grads), (rounded, rounded_grads) = results
    assert float(rounded.loss) != float(exact.loss)
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.03, atol=0)
    for one, other in zip(rounded_grads[:4], exact_grads[:4], strict=True):
        # A few latents at the cut can change sides, but the whole gradient keeps its direction.
        cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
        assert float(cosine) > 0.99
