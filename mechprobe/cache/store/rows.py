"""Reading rows of one shard file without h5py in the way: the datasets are mapped at their offset in the file."""

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
    """What a shard file must say of itself."""

    stream: str
    model: str
    start: int
    n_rows: int
    d_model: int
    dtype: StoreDtype


@dataclass(frozen=True, slots=True)
class MappedRows:
    """One site of one shard file: codes ``[row d_model]`` and, for 8-bit numbers, scales ``[row]``."""

    codes: np.ndarray
    scale: np.ndarray | None

    def copy_into(self, out: np.ndarray, offset: int) -> None:
        """Fill ``out`` (rows in memory, see `numbers`) with the rows from ``offset`` on."""
        rows = slice(offset, offset + len(out))
        pack_into(out, self.codes[rows], None if self.scale is None else self.scale[rows])


def map_rows(path: Path, site: str, header: ShardHeader) -> MappedRows:
    """Map one site of a shard file.

    Raises:
        StoreError: The file is missing, damaged, or another one than ``header`` says.
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
    held = (*found, codes.shape, kind, codes.dtype.str)
    whole = (header.n_rows, header.d_model)
    expected = (header.stream, header.model, header.start, whole, header.dtype, ON_DISK[header.dtype])
    if held != expected or (scale is not None and (scale.shape, scale.dtype.str) != (whole[:1], "<f4")):
        raise StoreError(f"{path} does not belong to this store ({held} there, {expected} expected); verify it.")
    return MappedRows(codes, scale)


def _mapped(path: Path, dataset: Any) -> tuple[np.ndarray, str]:
    offset = dataset.id.get_offset()
    if offset is None:
        raise ValueError("the dataset is not contiguous")
    mapped = np.memmap(path, dtype=dataset.dtype.str, mode="r", offset=offset, shape=dataset.shape)
    return mapped, str(dataset.attrs["dtype"])
