"""The numbers on disk: float32 and float16 as they are, bfloat16 as its bits in uint16 (HDF5 has no bfloat16)."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.activations.config import StoreDtype
from mechprobe.errors import StoreError

STORED_AS: dict[StoreDtype, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""NumPy type of the bytes on disk, by the name of the dtype."""

BYTES: dict[StoreDtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


def to_stored(values: Float[Tensor, "row d_model"], dtype: StoreDtype) -> np.ndarray:
    """Values as they go to disk, ``[row d_model]``.

    Raises:
        StoreError: A value is too large for ``dtype``, or is not finite to begin with.
    """
    rounded = values.to(getattr(torch, dtype))
    if not bool(torch.isfinite(rounded).all()):
        largest = float(values.abs().max())
        if not bool(torch.isfinite(values).all()):
            raise StoreError("The model gives activations that are not finite; load it in float32 or bfloat16.")
        raise StoreError(
            f"An activation of {largest:.4g} does not fit {dtype} (largest {torch.finfo(rounded.dtype).max:.5g}); "
            "cache with dtype bfloat16."
        )
    return bits(rounded.cpu().contiguous())


def bits(values: Tensor) -> np.ndarray:
    """A tensor as NumPy: the same bytes, bfloat16 as uint16."""
    return values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()


def from_stored(stored: np.ndarray, dtype: StoreDtype) -> Tensor:
    """A tensor over the same bytes (a view; the array must be writable or copied by the caller)."""
    values = torch.from_numpy(stored)
    return values.view(torch.bfloat16) if dtype == "bfloat16" else values
