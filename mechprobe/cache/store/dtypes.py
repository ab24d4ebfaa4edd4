"""The dtypes of a store, in memory and on disk.

float32 and float16 are stored unchanged. bfloat16 is stored as its bits in uint16, because HDF5 has no bfloat16. The two
8-bit dtypes store one code per number and one float32 scale per row: ``int8`` (127 steps in each direction) and
``e4m3`` (torch.float8_e4m3fn, 4 exponent bits and 3 mantissa bits). The scale maps the largest number of the row to the largest code.

In memory an 8-bit row is *packed*: its codes, followed by the four bytes of its scale. A row is then one run of bytes
when rows are copied and shuffled. On disk, codes and scales are two datasets.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechprobe.cache.config import StoreDtype
from mechprobe.errors import StoreError

STORED_AS: dict[StoreDtype, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int8": "|u1", "e4m3": "|u1"}
"""NumPy dtype of rows in memory."""

ON_DISK: dict[StoreDtype, str] = {**STORED_AS, "int8": "|i1"}
"""NumPy dtype of the dataset of a site."""

LARGEST_CODE: dict[StoreDtype, float] = {"int8": 127.0, "e4m3": 448.0}
"""Largest code of the 8-bit dtypes, which have one scale per row."""

SCALE = ".scale"
"""Suffix of the dataset that holds the scales of a site."""

_SCALE_BYTES = 4


def row_width(dtype: StoreDtype, d_model: int) -> int:
    """Number of entries of a row in memory: ``d_model``, plus the bytes of the scale for 8-bit dtypes."""
    return d_model + (_SCALE_BYTES if dtype in LARGEST_CODE else 0)


def row_bytes(dtype: StoreDtype, d_model: int) -> int:
    """Size of a row in bytes, on disk and in memory."""
    return row_width(dtype, d_model) * np.dtype(STORED_AS[dtype]).itemsize


def to_stored(values: Float[Tensor, "row d_model"], dtype: StoreDtype) -> np.ndarray:
    """Convert values to stored rows ``[row row_width]``.

    Raises:
        StoreError: A value is too large for ``dtype``, or is not finite.
    """
    rounded = _rounded(values, dtype)
    if not _all_finite(rounded):
        if not _all_finite(values):
            raise StoreError("The model produces activations that are not finite; load it in float32 or bfloat16.")
        raise StoreError(
            f"An activation of {float(values.abs().max()):.4g} does not fit in {dtype} (maximum "
            f"{torch.finfo(rounded.dtype).max:.5g}); cache with dtype bfloat16."
        )
    return _stored(rounded.cpu(), dtype)


def start_storing(
    values: Float[Tensor, "row d_model"], dtype: StoreDtype
) -> Callable[[], tuple[np.ndarray, Bool[Tensor, ""]]]:
    """Begin what `to_stored` does, without its errors.

    On a GPU the host does not wait before the returned function is called, so the copy to the host runs while the host
    prepares the next batch.

    Returns:
        A function that gives the stored rows ``[row row_width]``, and on the device of the values whether `to_stored`
        would take them. Rows of other values have no meaning.
    """
    if values.device.type != "cuda":
        return lambda: _rows_and_fit(_rounded(values, dtype), dtype)
    sent = _rounded(values, dtype)
    fit = _all_finite(sent)
    on_host = torch.empty(sent.shape, dtype=sent.dtype, pin_memory=True)
    on_host.copy_(sent, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(values.device))

    def finish() -> tuple[np.ndarray, Tensor]:
        copied.synchronize()
        # The codes are computed on the host, for the same bits on every device.
        return _stored(on_host, dtype), fit

    return finish


def _rounded(values: Tensor, dtype: StoreDtype) -> Tensor:
    """The values in the dtype of the store; unchanged for 8-bit dtypes."""
    return values if dtype in LARGEST_CODE else values.to(getattr(torch, dtype))


def _rows_and_fit(rounded: Tensor, dtype: StoreDtype) -> tuple[np.ndarray, Tensor]:
    return _stored(rounded.cpu(), dtype), _all_finite(rounded)


def _stored(rounded: Tensor, dtype: StoreDtype) -> np.ndarray:
    """Stored rows of rounded values on the host."""
    return _to_codes(rounded, dtype) if dtype in LARGEST_CODE else bits(rounded.contiguous())


def _all_finite(values: Tensor) -> Bool[Tensor, ""]:
    """Whether every value is finite, on the device. NaN and infinity show in the extremes, which need one pass and no copy."""
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    return torch.isfinite(torch.stack(torch.aminmax(values))).all()


def _to_codes(values: Float[Tensor, "row d_model"], dtype: StoreDtype) -> np.ndarray:
    """Packed rows of finite values: x ≈ code · scale, where scale = max|x| of the row / largest code (our definition)."""
    values, top = values.cpu().float(), LARGEST_CODE[dtype]
    scale = values.abs().amax(dim=1, keepdim=True) / top
    scale.clamp_(max=torch.finfo(torch.float32).max / top * (1 - 1e-6))  # top · scale stays finite
    codes = (values / torch.where(scale > 0, scale, 1.0)).clamp_(-top, top)
    coded = codes.round_().to(torch.int8) if dtype == "int8" else codes.to(torch.float8_e4m3fn)
    packed = np.empty((len(values), row_width(dtype, values.shape[1])), dtype=STORED_AS[dtype])
    packed[:, :-_SCALE_BYTES] = coded.view(torch.uint8).numpy()
    packed[:, -_SCALE_BYTES:] = scale.numpy().view(np.uint8)
    return packed


def bits(values: Tensor) -> np.ndarray:
    """The bytes of a tensor as a NumPy array; bfloat16 becomes uint16."""
    return values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()


def from_stored(stored: np.ndarray, dtype: StoreDtype) -> Tensor:
    """Stored rows as a tensor: a view of the same bytes (the array must be writable), or float32 values for 8-bit rows."""
    values = torch.from_numpy(stored)
    if dtype in LARGEST_CODE:
        return concat_models(values, (stored.shape[1] - _SCALE_BYTES,), dtype)
    return values.view(torch.bfloat16) if dtype == "bfloat16" else values


def unpacked(stored: np.ndarray, dtype: StoreDtype) -> tuple[np.ndarray, np.ndarray]:
    """Split packed rows into codes ``[row d_model]``, as on disk, and scales ``[row]``."""
    # Copy explicitly: NumPy treats a single row as contiguous whatever its stride.
    codes = stored[:, :-_SCALE_BYTES].copy().view(ON_DISK[dtype])
    return codes, stored[:, -_SCALE_BYTES:].copy().view("<f4")[:, 0]


def pack_into(out: np.ndarray, codes: np.ndarray, scale: np.ndarray | None) -> None:
    """Fill rows in memory from the dataset of a site and its scales."""
    if scale is None:
        out[:] = codes
        return
    out[:, :-_SCALE_BYTES] = codes.view(np.uint8)
    out[:, -_SCALE_BYTES:] = np.ascontiguousarray(scale).view(np.uint8).reshape(-1, _SCALE_BYTES)


def datasets(site: str, stored: np.ndarray, dtype: StoreDtype) -> dict[str, np.ndarray]:
    """The HDF5 datasets of the rows of a site: codes, and scales for 8-bit dtypes."""
    if dtype not in LARGEST_CODE:
        return {site: stored}
    codes, scale = unpacked(stored, dtype)
    return {site: codes, site + SCALE: scale}


def concat_models(stored: Tensor, widths: Sequence[int], dtype: StoreDtype) -> Float[Tensor, "row d_all"]:
    """Stored rows of several models, concatenated, as float32 on the same device. Every device gives the same bits."""
    if dtype not in LARGEST_CODE:
        return (stored.view(torch.bfloat16) if dtype == "bfloat16" else stored).float()
    code = torch.int8 if dtype == "int8" else torch.float8_e4m3fn
    out = torch.empty((len(stored), sum(widths)), device=stored.device)
    column = row = 0
    for width in widths:
        end = row + width
        values = out[:, column : column + width]
        values.copy_(stored[:, row:end].view(code))
        values.mul_(
            stored[:, end : end + _SCALE_BYTES].clone(memory_format=torch.contiguous_format).view(torch.float32)
        )
        column, row = column + width, end + _SCALE_BYTES
    return out
