"""What all kernel launches need: the device, the block sizes, and the type of the sums."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Largest slab of the gathered matrix, so that it stays in the L2 cache (50 MB on an H100 or H200) beside the data that
# stream through.
CACHE_BYTES = 32 << 20
NARROWEST, WIDEST = 64, 1024
TILE_ELEMENTS = 4096


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` of the undecorated function: Triton reads its globals, which a type checker's wrapper hides."""
    return triton.jit(inspect.unwrap(function))


@dataclass(frozen=True)
class Blocks:
    """How a product over a [rows d] matrix is divided.

    Attributes:
        width: Columns of a slab.
        n_slabs: Number of slabs that cover d.
        tile: Rows that a program gathers at once.
    """

    width: int
    n_slabs: int
    tile: int


def blocks(gathered: Tensor) -> Blocks:
    """Divide a matrix whose rows are gathered into slabs that fit into the cache.

    The programs of a slab are scheduled together, so a row that many entries need is read from memory once.
    """
    n_rows, d = gathered.shape
    width = WIDEST
    while width > NARROWEST and n_rows * width * gathered.element_size() > CACHE_BYTES:
        width //= 2
    width = min(width, 1 << (max(d, 1) - 1).bit_length())
    return Blocks(width, -(-d // width), min(16, TILE_ELEMENTS // width))


def sum_type(*tensors: Tensor) -> tuple[torch.dtype, tl.dtype]:
    """The type of the sums for torch and for Triton: float64 if a tensor is, float32 otherwise."""
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return torch.float64, tl.float64
    return torch.float32, tl.float32


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the GPU of a tensor the current one, where Triton launches kernels."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
