"""Random updates: Gaussian matrices with the shape and the Frobenius norm of an update, drawn from a seed."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.drift.weights.stored import spans

MANY_DRAWS_UP_TO = 512
"""Largest smaller side with several draws; a larger random matrix hardly differs from the next."""


def generator_of(*parts: object) -> torch.Generator:
    """A generator whose seed follows from the parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class RandomUpdate:
    """A Gaussian matrix of Frobenius norm 1. Matrices of one shape share their draws.

    Attributes:
        shape: Longer and smaller side.
        seed: Seed of the stage.
        draw: Number of the draw.
    """

    shape: tuple[int, int]
    seed: int
    draw: int

    def blocks(self, dtype: torch.dtype = torch.float64) -> Iterator[Float[Tensor, "place short"]]:
        """The matrix in the blocks of a stored one; every reading gives the same numbers."""
        for block in self._drawn():
            yield block.mul_(self._scale).to(dtype)

    def _drawn(self) -> Iterator[Tensor]:
        long, short = self.shape
        for start, stop in spans(long, short):
            generator = generator_of("null", self.seed, self.draw, long, short, start)
            yield torch.randn(stop - start, short, generator=generator, dtype=torch.float32).double()

    @cached_property
    def _scale(self) -> float:
        return 1 / math.sqrt(sum(block.square().sum().item() for block in self._drawn()))


def random_frame(n: int, k: int, *parts: object) -> Float[Tensor, "n k"]:
    """An orthonormal basis of a random subspace: the singular subspaces of a Gaussian matrix are distributed so."""
    return torch.linalg.qr(torch.randn(n, k, generator=generator_of(*parts, n, k), dtype=torch.float64)).Q


def n_draws(short: int, most: int) -> int:
    """Number of random updates beside one of this smaller side."""
    return most if short <= MANY_DRAWS_UP_TO else 1


def with_null(found: dict[str, float], nulls: list[dict[str, float]]) -> dict[str, float]:
    """Numbers with mean and range of the same numbers of random updates, as ``<name>_null``, ``_null_low``, ``_null_high``."""
    row = dict(found)
    for name in nulls[0]:
        values = [null[name] for null in nulls]
        row |= {
            f"{name}_null": math.fsum(values) / len(values),
            f"{name}_null_low": min(values),
            f"{name}_null_high": max(values),
        }
    return row
