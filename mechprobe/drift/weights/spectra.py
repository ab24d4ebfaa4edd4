"""Singular values and subspaces of weights and updates, from their Gram matrices.

For W of shape ``[long short]`` and an update D, the matrices WᵀW, WᵀD and DᵀD of shape ``[short short]`` determine everything
here, and they are sums over blocks of rows. They are kept in float64. Singular values below `FLOOR` of the largest one are
rounding, and count as 0.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-7
"""Square root of the precision of float64, rounded up for sums over many entries."""


@dataclass(frozen=True)
class Singular:
    """Singular values from the largest on, and right vectors of the first of them.

    Attributes:
        values: Singular values, all of them or the first.
        right: Right singular vectors of as many first values.
        error: Largest residual ||AᵀA v - σ² v|| / (σ σ_1) of the first values; 0 where they are exact.
    """

    values: Float[Tensor, " value"]
    right: Float[Tensor, "short k"]
    error: float = 0.0

    @property
    def rank(self) -> int:
        """Number of vectors whose value is more than rounding."""
        first = self.values[: self.right.shape[1]]
        return int((first > FLOOR * self.values[0]).sum()) if len(first) and self.values[0] > 0 else 0

    def first(self, k: int) -> "Singular":
        """The first values and vectors alone."""
        return Singular(self.values[:k], self.right[:, :k], self.error)


@dataclass(frozen=True)
class Grams:
    """WᵀD and DᵀD of an update D of W."""

    cross: Float[Tensor, "short short"]
    own: Float[Tensor, "short short"]

    def times(self, factor: float) -> "Grams":
        """Those of the update times a factor."""
        return Grams(factor * self.cross, factor**2 * self.own)


def grams(blocks: Iterable[tuple[Tensor, Tensor]], short: int) -> Grams:
    """Sum the Gram matrices of an update over blocks ``[place, short]`` of W and D."""
    cross, own = (torch.zeros(short, short, dtype=torch.float64) for _ in range(2))
    for weight, update in blocks:
        cross.addmm_(weight.T.double(), update.double())
        own.addmm_(update.T.double(), update.double())
    return Grams(cross, own)


def singular_of(gram: Float[Tensor, "short short"], k: int) -> Singular:
    """All singular values of A and its first k right vectors, from AᵀA."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    return Singular(_roots(eigenvalues), vectors[:, -k:].flip(1).contiguous())


def singular_values(gram: Float[Tensor, "short short"]) -> Float[Tensor, " short"]:
    """All singular values of A from AᵀA."""
    return _roots(torch.linalg.eigvalsh(gram))


def _roots(eigenvalues: Float[Tensor, " short"]) -> Float[Tensor, " short"]:
    roots = eigenvalues.flip(0).clamp(min=0).sqrt()
    return torch.where(roots > FLOOR * roots[0], roots, 0.0)


def spectrum_numbers(values: Float[Tensor, " value"]) -> dict[str, float]:
    """Spectral norm, stable rank, effective rank and nuclear norm of a matrix with all of these singular values.

    The stable rank is ||D||_F² / σ_1². The effective rank is the exponential of the entropy of σ / Σσ (Roy and Vetterli 2007).
    """
    first, total = values[0].item(), values.sum().item()
    if not first:
        return {"spectral_norm": 0.0, "stable_rank": math.nan, "effective_rank": math.nan, "nuclear_norm": 0.0}
    shares = values[values > 0] / total
    return {
        "spectral_norm": first,
        "stable_rank": values.square().sum().item() / first**2,
        "effective_rank": math.exp(-(shares * shares.log()).sum().item()),
        "nuclear_norm": total,
    }


@dataclass(frozen=True)
class Projections:
    """What an update does in the top subspaces of W.

    Attributes:
        left: U_baseᵀ U_tuned.
        right: V_baseᵀ V_tuned.
        inside: ||U_baseᵀ D V_base||².
        inside_left: ||U_baseᵀ D||².
        inside_right: ||D V_base||².
        square: ||D||².
    """

    left: Float[Tensor, "k k"]
    right: Float[Tensor, "k k"]
    inside: float
    inside_left: float
    inside_right: float
    square: float


def exact_projections(base: Singular, tuned: Singular, update: Grams, k: int) -> Projections:
    """The projections from Gram matrices: U_base = W V_base / σ, so that U_baseᵀ D = V_baseᵀ (WᵀD) / σ."""
    values, right = base.values[:k, None], base.right[:, :k]
    toward, tuned_right = right.T @ update.cross / values, tuned.right[:, :k]
    left = (values * (right.T @ tuned_right) + toward @ tuned_right) / tuned.values[:k]
    return Projections(
        left=left,
        right=right.T @ tuned_right,
        inside=(toward @ right).square().sum().item(),
        inside_left=toward.square().sum().item(),
        inside_right=(right * (update.own @ right)).sum().item(),
        square=update.own.trace().item(),
    )


def geometry_numbers(base: Singular, tuned: Singular, found: Projections) -> dict[str, float]:
    """Change of the singular values of W, principal angles in degrees, and shares of ||D||² inside W's top subspaces."""
    n = min(len(base.values), len(tuned.values))
    change = (tuned.values[:n] - base.values[:n]).norm() / base.values[:n].norm()
    left, right = principal_angles(found.left), principal_angles(found.right)
    return {
        "sv_change": change.item(),
        "angle_left": left.mean().item(),
        "angle_left_max": left.max().item(),
        "angle_right": right.mean().item(),
        "angle_right_max": right.max().item(),
        "inside": found.inside / found.square,
        "inside_left": found.inside_left / found.square,
        "inside_right": found.inside_right / found.square,
    }


def principal_angles(overlap: Float[Tensor, "k k"]) -> Float[Tensor, " k"]:
    """Angles between two subspaces in degrees, from the products of their orthonormal bases."""
    return torch.rad2deg(torch.arccos(torch.linalg.svdvals(overlap).clamp(0, 1)))


def subspace_overlap(product: Float[Tensor, "k m"]) -> float:
    """Mean squared cosine of the principal angles, ||Q_AᵀQ_B||² / min(k, m): 1 for one subspace inside the other."""
    return product.square().sum().item() / min(product.shape)
