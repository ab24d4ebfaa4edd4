"""The hand-written step against automatic differentiation of the dense formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_training import Crosscoder, CrosscoderConfig
from sae_training.selection import Selector
from sae_training.step import Parameters, StepWeights, loss_and_gradients

PARAMETERS = ("encoder", "decoder", "b_enc", "b_dec_flat")


def random_crosscoder(variant: str, widths: tuple[int, ...] = (5, 7, 4), d_sae: int = 24, k: int = 4) -> Crosscoder:
    config = CrosscoderConfig(n_models=len(widths), d_model=widths, d_sae=d_sae, variant=variant, k=k)
    crosscoder = Crosscoder(config).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return crosscoder


def dense_loss(crosscoder: Crosscoder, x: torch.Tensor, l1: float, aux: float, aux_k: int, dead: torch.Tensor | None):
    """The loss of step.py's docstring, written once more without sharing any code, for autograd."""
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
        loss = loss + l1 * (kept * norm).sum(dim=1).mean()
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
