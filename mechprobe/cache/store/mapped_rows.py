"""Rows of a shard file, memory-mapped at the offset of their dataset, without going through h5py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.dtypes import LARGEST_CODE, ON_DISK, SCALE, pack_into
from mechprobe.errors import StoreError


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """The metadata that a shard file must have."""

    stream: str
    model: str
    start: int
    n_rows: int
    d_model: int
    dtype: StoreDtype


@dataclass(frozen=True, slots=True)
class MappedRows:
    """One site of one shard file: codes ``[row d_model]`` and, for 8-bit dtypes, scales ``[row]``."""

    codes: np.ndarray
    scale: np.ndarray | None

    def copy_into(self, out: np.ndarray, offset: int) -> None:
        """Fill ``out`` ``[row row_width]`` with the stored rows from ``offset`` on."""
        rows = slice(offset, offset + len(out))
        pack_into(out, self.codes[rows], None if self.scale is None else self.scale[rows])


def map_rows(path: Path, site: str, header: ShardHeader) -> MappedRows:
    """Map one site of a shard file.

    Raises:
        StoreError: The file is missing or damaged, or its metadata differs from ``header``.
    """
    scaled = header.dtype in LARGEST_CODE
    try:
        with h5py.File(path, "r") as file:
            attributes: Any = dict(file.attrs)
            found = tuple(attributes.get(name) for name in ("stream", "model", "start"))
            codes, kind = _mapped(path, file[site])
            scale, _ = _mapped(path, file[site + SCALE]) if scaled else (None, "")
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise StoreError(f"{path} is missing or damaged ({type(error).__name__}); make the store again.") from None
    actual = (*found, codes.shape, kind, codes.dtype.str)
    shape = (header.n_rows, header.d_model)
    expected = (header.stream, header.model, header.start, shape, header.dtype, ON_DISK[header.dtype])
    if actual != expected or (scale is not None and (scale.shape, scale.dtype.str) != (shape[:1], "<f4")):
        raise StoreError(
            f"{path} does not belong to this store ({actual} there, {expected} expected); "
            "check the store with `mechprobe store verify`."
        )
    return MappedRows(codes, scale)


def _mapped(path: Path, dataset: Any) -> tuple[np.ndarray, str]:
    offset = dataset.id.get_offset()
    if offset is None:
        raise ValueError("the dataset is not contiguous")
    mapped = np.memmap(path, dtype=dataset.dtype.str, mode="r", offset=offset, shape=dataset.shape)
    return mapped, str(dataset.attrs["dtype"])
