"""Export of a store to other formats in bounded memory: one safetensors file, or NumPy arrays.

Both hold ``<site>/<model>`` ``[row d_model]`` in stream order, and the columns of the token rows. Values keep the dtype
of the store, or are converted to float32. safetensors supports every dtype. NumPy has no bfloat16 and no e4m3, so their
bits are exported as uint16 and uint8; ``layout.json`` names the dtypes. 8-bit arrays come with their scales ``[row]``.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.disk import translate_disk_errors
from mechprobe.cache.store.dtypes import LARGEST_CODE, ON_DISK, SCALE, unpacked
from mechprobe.data.stream import ROW_COLUMNS
from mechprobe.errors import StoreError
from mechprobe.files import write_json
from mechprobe.progress import Advance, Meter, progress
from mechprobe.types import Site
from sae_training.atomic import atomic_path

Numbers = Literal["stored", "float32"]
"""Export values in the dtype of the store, or as float32."""

LAYOUT = "layout.json"
CHUNK_ROWS = 8192
"""Number of rows in memory at a time."""

_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "e4m3": "F8_E4M3"}
_SAFETENSORS |= {"int32": "I32", "bool": "BOOL"}


@dataclass(frozen=True)
class _Array:
    """One array of an export: store dtype (or ``int32``, ``bool``), NumPy dtype, shape, and a function that loads rows."""

    kind: str
    dtype: np.dtype
    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def chunks(self, advance: Advance) -> Iterator[bytes]:
        for start in range(0, self.shape[0], CHUNK_ROWS):
            found = np.ascontiguousarray(self.rows(start, min(start + CHUNK_ROWS, self.shape[0]))).tobytes()
            yield found
            advance(len(found))


def export_safetensors(store: ActivationStore, path: Path | str, numbers: Numbers = "stored") -> int:
    """Write one safetensors file; returns its size in bytes.

    Raises:
        StoreError: The file exists already, or the disk is full.
    """
    path = Path(path)
    _require_new(path)
    arrays = _arrays(store, numbers)
    # Largest element type first, so that every array is aligned in the file.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    with (
        translate_disk_errors(path), atomic_path(path) as partial, partial.open("wb") as file, _exporting(arrays) as advance,
    ):  # fmt: skip
        file.write(_safetensors_header(store, {name: arrays[name] for name in order}))
        for name in order:
            file.writelines(arrays[name].chunks(advance))
    return path.stat().st_size


def _safetensors_header(store: ActivationStore, arrays: Mapping[str, _Array]) -> bytes:
    """Length and JSON header of a safetensors file that holds the arrays in this order."""
    metadata = {"stream": store.stream_hash, "tokenizer": store.tokenizer_fingerprint}
    header: dict[str, object] = {"__metadata__": metadata | {f"model {k}": v for k, v in store.fingerprints.items()}}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _SAFETENSORS[array.kind],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.n_bytes],
        }
        offset += array.n_bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def export_numpy(store: ActivationStore, folder: Path | str, numbers: Numbers = "stored") -> int:
    """Write ``<site>/<model>.npy`` and ``tokens/<column>.npy`` to a new folder; returns their size in bytes.

    ``np.load(..., mmap_mode="r")`` opens them.

    Raises:
        StoreError: The folder exists already, or the disk is full.
    """
    folder = Path(folder)
    _require_new(folder)
    arrays = _arrays(store, numbers)
    with translate_disk_errors(folder), atomic_path(folder) as partial, _exporting(arrays) as advance:
        for name, array in arrays.items():
            path = partial / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.writelines(array.chunks(advance))
        layout = {name: {"dtype": array.kind, "shape": list(array.shape)} for name, array in arrays.items()}
        about = {"stream": store.stream_hash, "tokenizer": store.tokenizer_fingerprint, "models": store.fingerprints}
        write_json(partial / LAYOUT, {**about, "arrays": layout})
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _exporting(arrays: Mapping[str, _Array]) -> AbstractContextManager[Meter]:
    return progress(sum(array.n_bytes for array in arrays.values()), "exporting", unit="bytes")


def _require_new(path: Path) -> None:
    if path.exists():
        raise StoreError(f"{path} exists already; give another --out.")


def _arrays(store: ActivationStore, numbers: Numbers) -> dict[str, _Array]:
    arrays: dict[str, _Array] = {}
    for site in store.sites:
        for name in store.models:
            arrays |= _site_arrays(store, site, name, numbers)
    for column in ROW_COLUMNS:
        values: np.ndarray = getattr(store.tokens, column)
        kind, shape = values.dtype, values.shape
        arrays[f"tokens/{column}"] = _Array(str(kind), kind, shape, lambda a, b, values=values: values[a:b])
    return arrays


def _site_arrays(store: ActivationStore, site: Site, model: str, numbers: Numbers) -> dict[str, _Array]:
    name, shape = f"{site}/{model}", (store.n_rows, store.widths[model])
    codes, float32 = np.dtype(ON_DISK[store.dtype]), np.dtype("<f4")

    def stored(start: int, stop: int) -> np.ndarray:
        return store.stored_rows_of(model, start, stop, site)

    def converted(start: int, stop: int) -> np.ndarray:
        return store.rows_of(model, start, stop, site).contiguous().numpy()

    if numbers == "float32":
        return {name: _Array("float32", float32, shape, converted)}
    if store.dtype not in LARGEST_CODE:
        return {name: _Array(store.dtype, codes, shape, stored)}
    return {
        name: _Array(store.dtype, codes, shape, lambda a, b: unpacked(stored(a, b), store.dtype)[0]),
        name + SCALE: _Array("float32", float32, shape[:1], lambda a, b: unpacked(stored(a, b), store.dtype)[1]),
    }
