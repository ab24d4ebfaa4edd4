"""Estimates for matrices too large for an exact decomposition, with their errors. A matrix is read as blocks of rows.

The first singular values come from a randomized SVD with oversampling and power iterations (Halko, Martinsson and Tropp, SIAM
Review 2011). Nuclear norm and effective rank need all values: the first are taken as found, and the rest is estimated by
stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIMAX 2017) in the complement of their vectors.
"""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.drift.weights.spectra import Projections, Singular

OVERSAMPLING, POWER_ITERATIONS = 16, 4
PROBES, LANCZOS_STEPS = 4, 24

Blocks = Callable[[], Iterable[Tensor]]
"""Reads a matrix once more, as blocks ``[place, short]``."""


def top_singular(blocks: Blocks, short: int, k: int, generator: torch.Generator) -> Singular:
    """The first ``k`` singular values and right vectors, and ``OVERSAMPLING`` further ones that are less exact.

    Returns:
        ``k + OVERSAMPLING`` values and vectors at most; the error is that of the first ``k``.
    """
    width = min(k + OVERSAMPLING, short)
    basis = torch.linalg.qr(torch.randn(short, width, generator=generator, dtype=torch.float64)).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(normal(blocks, basis)).Q
    image = normal(blocks, basis)
    eigenvalues, turn = torch.linalg.eigh(basis.T @ image)
    squares, turn = eigenvalues.flip(0).clamp(min=0), turn.flip(1)
    right, values = basis @ turn, squares.sqrt()
    if not values[0]:
        return Singular(values, right)
    residual = (image @ turn - right * squares).norm(dim=0)[:k] / (values[:k].clamp(min=1e-12 * values[0]) * values[0])
    return Singular(values, right, residual.max().item())


def normal(blocks: Blocks, basis: Float[Tensor, "short width"]) -> Float[Tensor, "short width"]:
    """AᵀA times some vectors, in one reading of A."""
    total = torch.zeros_like(basis)
    for block in blocks():
        exact = block.double()
        total += exact.T @ (exact @ basis)
    return total


def sketched_projections(
    pairs: Callable[[], Iterable[tuple[Tensor, Tensor]]], base: Singular, tuned: Singular, k: int
) -> Projections:
    """The projections in one reading of W and D."""
    right, tuned_right = base.right[:, :k], tuned.right[:, :k]
    left = torch.zeros(k, k, dtype=torch.float64)
    toward = torch.zeros(k, len(right), dtype=torch.float64)
    inside_right = square = 0.0
    for weight, change in pairs():
        update = change.double()
        image = weight.double() @ right
        left += image.T @ ((weight + update) @ tuned_right)
        toward += image.T @ update
        inside_right += (update @ right).square().sum().item()
        square += update.square().sum().item()
    toward /= base.values[:k, None]
    return Projections(
        left=left / base.values[:k, None] / tuned.values[:k],
        right=right.T @ tuned_right,
        inside=(toward @ right).square().sum().item(),
        inside_left=toward.square().sum().item(),
        inside_right=inside_right,
        square=square,
    )


def sketched_numbers(
    blocks: Blocks, top: Singular, square: float, generator: torch.Generator
) -> tuple[dict[str, float], float]:
    """The numbers of `mechprobe.drift.weights.spectra.spectrum_numbers`, estimated.

    Args:
        blocks: The matrix.
        top: Its first values and vectors.
        square: Its squared Frobenius norm, which is known exactly.
        generator: Source of the probes.

    Returns:
        The numbers, and the standard error of the nuclear norm over the probes as a share of it.
    """
    probes = torch.randn(len(top.right), PROBES, generator=generator, dtype=torch.float64)
    found = [
        [(weights * nodes).sum().item(), (weights * torch.xlogy(nodes, nodes)).sum().item()]
        for nodes, weights in _quadrature(blocks, top.right, probes)
    ]
    first = top.values[0].item()
    sums = torch.tensor(found, dtype=torch.float64)
    known = top.values[top.values > 0]
    nuclear = known.sum().item() + sums[:, 0].mean().item()
    entropy_sum = torch.xlogy(known, known).sum().item() + sums[:, 1].mean().item()
    numbers = {
        "spectral_norm": first,
        "stable_rank": square / first**2,
        "effective_rank": math.exp(math.log(nuclear) - entropy_sum / nuclear),
        "nuclear_norm": nuclear,
    }
    return numbers, (sums[:, 0].std() / math.sqrt(PROBES) / nuclear).item()


def _quadrature(
    blocks: Blocks, away: Float[Tensor, "short k"], probes: Float[Tensor, "short probe"]
) -> list[tuple[Float[Tensor, " node"], Float[Tensor, " node"]]]:
    """Nodes (singular values) and weights of the quadrature of every probe, in the complement of ``away``.

    The Lanczos steps of all probes share the readings of the matrix. A probe whose steps are exhausted continues with zeros,
    which have no weight.
    """
    vectors = probes - away @ (away.T @ probes)
    basis = [vectors / vectors.norm(dim=0)]
    dimension = len(probes) - away.shape[1]  # probes of equal length vary less than Gaussian ones
    diagonal, beside = [], []
    for _ in range(min(LANCZOS_STEPS, dimension)):
        image = normal(blocks, basis[-1])
        diagonal.append((basis[-1] * image).sum(dim=0))
        for _ in range(2):  # once is not enough in floating point
            image = image - away @ (away.T @ image)
            for known in basis:
                image = image - known * (known * image).sum(dim=0)
        length = image.norm(dim=0)
        spent = length <= 1e-12 * torch.stack(diagonal).abs().amax(dim=0)
        beside.append(torch.where(spent, 0.0, length))
        basis.append(torch.where(spent, 0.0, image / length.clamp(min=torch.finfo(torch.float64).tiny)))
    found = []
    for probe in range(probes.shape[1]):
        side = torch.stack(beside[:-1])[:, probe] if len(beside) > 1 else torch.zeros(0, dtype=torch.float64)
        tridiagonal = torch.diag(torch.stack(diagonal)[:, probe]) + torch.diag(side, 1) + torch.diag(side, -1)
        nodes, turn = torch.linalg.eigh(tridiagonal)
        found.append((nodes.clamp(min=0).sqrt(), dimension * turn[0].square()))
    return found
