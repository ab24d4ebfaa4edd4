"""A store in formats that other tools read, written in bounded memory: one safetensors file, or NumPy arrays.

Both hold ``<site>/<model>`` ``[row d_model]`` in stream order and the token rows. Numbers are as they are stored, or
float32 on demand. safetensors has names for all of them; NumPy has none for bfloat16 (its bits are uint16 there) and
e4m3 (uint8), and 8-bit numbers have their scales ``[row]`` beside them: ``layout.json`` says so.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.dtypes import LARGEST_CODE, ON_DISK, SCALE, unpacked
from mechprobe.cache.store.shards import sync_folder, translate_disk_errors
from mechprobe.errors import StoreError
from mechprobe.files import write_json
from mechprobe.types import Site

Numbers = Literal["stored", "float32"]
"""Which numbers are written: those on disk, or their float32 values."""

LAYOUT = "layout.json"
CHUNK_ROWS = 8192
"""Rows that are in memory at a time."""

_TOKENS = ("token_id", "sample", "position", "is_response", "held_out")
_SAFETENSORS = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "e4m3": "F8_E4M3",
    "int32": "I32",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class _Array:
    """One array of an export: what it holds, and its rows on demand."""

    kind: str
    """Name of its numbers: a store dtype, ``int32`` or ``bool``."""
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, self.shape[0], CHUNK_ROWS):
            yield np.ascontiguousarray(self.read(start, min(start + CHUNK_ROWS, self.shape[0]))).tobytes()


def export_safetensors(store: ActivationStore, path: Path | str, numbers: Numbers = "stored") -> int:
    """Write one safetensors file; returns its size in bytes.

    Args:
        store: What is exported.
        path: File to write; it must not exist.
        numbers: As they are stored, or float32.

    Raises:
        StoreError: The file exists already, or the disk is full.
    """
    path = Path(path)
    _require_new(path)
    arrays = _arrays(store, numbers)
    # The largest element type first, so that every array is aligned in the file.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    metadata = {"stream": store.stream_hash, "tokenizer": store.tokenizer_fingerprint}
    header: dict[str, object] = {"__metadata__": metadata | {f"model {k}": v for k, v in store.fingerprints.items()}}
    offset = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": _SAFETENSORS[array.kind],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.n_bytes],
        }
        offset += array.n_bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with _whole_or_not_at_all(partial), translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.writelines(arrays[name].chunks())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    return path.stat().st_size


def export_numpy(store: ActivationStore, folder: Path | str, numbers: Numbers = "stored") -> int:
    """Write ``<site>/<model>.npy`` and ``tokens/<column>.npy``, to be opened with ``np.load(..., mmap_mode="r")``.

    Args:
        store: What is exported.
        folder: Folder to make; it must not exist.
        numbers: As they are stored, or float32.

    Returns:
        Size of all files in bytes.

    Raises:
        StoreError: The folder exists already, or the disk is full.
    """
    folder = Path(folder)
    _require_new(folder)
    arrays = _arrays(store, numbers)
    partial = folder.with_name(folder.name + ".partial")
    with _whole_or_not_at_all(partial), translate_disk_errors(folder):
        for name, array in arrays.items():
            path = partial / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.writelines(array.chunks())
                file.flush()
                os.fsync(file.fileno())
        layout = {name: {"dtype": array.kind, "shape": list(array.shape)} for name, array in arrays.items()}
        about = {"stream": store.stream_hash, "tokenizer": store.tokenizer_fingerprint, "models": store.fingerprints}
        write_json(partial / LAYOUT, {**about, "arrays": layout})
        partial.replace(folder)
        sync_folder(folder.parent)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _require_new(path: Path) -> None:
    if path.exists():
        raise StoreError(f"{path} exists already; give another --out.")


@contextmanager
def _whole_or_not_at_all(partial: Path) -> Iterator[None]:
    """Drops a half-written file or folder, of now or of a killed process before."""
    try:
        _drop(partial)
        yield
    finally:
        _drop(partial)


def _drop(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink(missing_ok=True)


def _arrays(store: ActivationStore, numbers: Numbers) -> dict[str, _Array]:
    arrays: dict[str, _Array] = {}
    for site in store.sites:
        for name in store.models:
            arrays |= _site_arrays(store, site, name, numbers)
    for column in _TOKENS:
        values: np.ndarray = getattr(store.tokens, column)
        arrays[f"tokens/{column}"] = _Array(
            str(values.dtype), values.dtype, values.shape, lambda start, stop, values=values: values[start:stop]
        )
    return arrays


def _site_arrays(store: ActivationStore, site: Site, model: str, numbers: Numbers) -> dict[str, _Array]:
    name, shape = f"{site}/{model}", (store.n_rows, store.widths[model])
    if numbers == "float32":
        return {
            name: _Array(
                "float32", np.dtype("<f4"), shape, lambda a, b: store.rows_of(model, a, b, site).contiguous().numpy()
            )
        }

    def stored(start: int, stop: int) -> np.ndarray:
        return store.stored_rows_of(model, start, stop, site)

    codes = np.dtype(ON_DISK[store.dtype])
    if store.dtype not in LARGEST_CODE:
        return {name: _Array(store.dtype, codes, shape, stored)}
    return {
        name: _Array(store.dtype, codes, shape, lambda a, b: unpacked(stored(a, b), store.dtype)[0]),
        name + SCALE: _Array(
            "float32", np.dtype("<f4"), shape[:1], lambda a, b: unpacked(stored(a, b), store.dtype)[1]
        ),
    }
