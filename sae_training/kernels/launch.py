"""What every launch needs: a device, block sizes, and the type in which sums are kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# What a slab of the gathered matrix may take, so that it stays in the second-level cache (50 MB on an H100 or H200)
# beside what streams through.
CACHE_BYTES = 32 << 20
NARROWEST, WIDEST = 64, 1024
TILE_ELEMENTS = 4096


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` of the function as it is written: Triton reads its globals, which a type checker's wrapper hides."""
    return triton.jit(inspect.unwrap(function))


@dataclass(frozen=True)
class Blocks:
    """How a product over [rows d] is cut.

    Attributes:
        width: columns of one slab.
        n_slabs: slabs that cover d.
        tile: gathered rows in flight in one program.
    """

    width: int
    n_slabs: int
    tile: int


def blocks(gathered: Tensor) -> Blocks:
    """Slabs of a matrix whose rows are gathered, narrow enough that one stays in the cache.

    The programs of one slab are scheduled together: a row that many entries need is then read from memory once.
    """
    n_rows, d = gathered.shape
    width = WIDEST
    while width > NARROWEST and n_rows * width * gathered.element_size() > CACHE_BYTES:
        width //= 2
    width = min(width, 1 << (max(d, 1) - 1).bit_length())
    return Blocks(width, -(-d // width), min(16, TILE_ELEMENTS // width))


def sum_type(*tensors: Tensor) -> tuple[torch.dtype, tl.dtype]:
    """The type of the sums, in torch's and in Triton's words: float64 if anything is, float32 otherwise."""
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return torch.float64, tl.float64
    return torch.float32, tl.float32


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make a tensor's GPU the current one: Triton launches there."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
