"""Shard files: immutable HDF5 files that hold the rows of one model.

`write_shard` writes a shard to ``.partial``, closes it, flushes it to disk, hashes it, renames it, and then records it
in a JSON file beside it. A recorded shard is never opened for writing again. Its datasets are contiguous and uncompressed,
so that a reader can map them at their file offset. Plain h5py can read every file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.disk import map_dataset, reading_hdf5, translate_disk_errors, write_hdf5
from mechprobe.cache.store.dtypes import LARGEST_CODE, ON_DISK, SCALE, datasets, pack_into
from mechprobe.cache.store.norms import ShardNorms, norms_file
from mechprobe.data.stream import ShardRange, TokenStream
from mechprobe.errors import ArtifactError, StoreError
from mechprobe.files import read_json, write_json

INDEX = "index.json"
FORMAT = "mechprobe activations 1"


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """Record of a finished shard.

    Attributes:
        file: File name in the folder of the model.
        start: First row.
        n_rows: Number of rows.
        n_bytes: Size of the file in bytes.
        sha256: sha256 of the file.
        stream: Hash of the token stream.
        norm_sum: Site to the sum of the L2 norms of the training rows.
        n_norms: Number of training rows.
        forward: How the rows were computed: ``reader``, ``batch_tokens`` (of one forward pass, after any reduction for
            lack of memory) and ``proof`` (of the reader). Empty for the shards of a ring.
    """

    file: str
    start: int
    n_rows: int
    n_bytes: int
    sha256: str
    stream: str
    norm_sum: dict[str, float]
    n_norms: int
    forward: dict[str, str | int] = field(default_factory=dict)


def shard_file(index: int) -> str:
    """File name of a shard."""
    return f"shard_{index:05d}.h5"


def write_shard(
    folder: Path,
    shard: ShardRange,
    arrays: Mapping[str, np.ndarray],
    *,
    model: str,
    dtype: StoreDtype,
    stream: TokenStream,
    forward: Mapping[str, str | int] | None = None,
    keep_norms: bool = False,
) -> ShardRecord:
    """Write one shard of one model to the folder of the model, then its record.

    ``arrays`` maps each site to its stored rows ``[row row_width]`` (`mechprobe.cache.store.dtypes`), and ``forward`` says
    how they were computed. ``keep_norms`` also writes the norms of the rows beside the shard, for `NormFiles`.

    Raises:
        StoreError: The disk is full or the folder is not writable.
    """
    name = shard_file(shard.index)
    start, n_rows = shard.rows.start, len(shard.rows)
    attributes: dict[str, Any] = {"format": FORMAT, "model": model, "stream": stream.hash}
    attributes |= {"start": start, "n_rows": n_rows}
    written: dict[str, np.ndarray] = {}
    for site, array in arrays.items():
        written |= datasets(site, array, dtype)
        attributes[f"{site}:dtype"] = dtype
        if site + SCALE in written:
            attributes |= {f"{site}:scale": site + SCALE, f"{site + SCALE}:dtype": "float32"}
    digest = write_hdf5(folder / name, written, attributes)
    n_bytes = (folder / name).stat().st_size
    norms = ShardNorms.of(arrays, dtype)
    if keep_norms:
        norms.write(folder / norms_file(shard.index))
    sums = norms.training_sums(~stream.rows.held_out[start : start + n_rows])
    record = ShardRecord(name, start, n_rows, n_bytes, digest, stream.hash, *sums, forward=dict(forward or {}))
    with translate_disk_errors(folder / name):
        write_json(folder / f"{name}.json", asdict(record))
    return record


def finished_shard(folder: Path, shard: ShardRange, stream_hash: str) -> ShardRecord | None:
    """The record of a finished shard of this stream; None when the shard is missing, incomplete or of another stream."""
    name = shard_file(shard.index)
    try:
        record = ShardRecord(**read_json(folder / f"{name}.json"))
    except (ArtifactError, TypeError):
        return None
    path = folder / name
    complete = path.is_file() and path.stat().st_size == record.n_bytes
    same = (record.start, record.n_rows, record.stream) == (shard.rows.start, len(shard.rows), stream_hash)
    return record if complete and same else None


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
    with reading_hdf5(path) as file:
        attributes: Any = dict(file.attrs)
        found = tuple(attributes.get(name) for name in ("stream", "model", "start"))
        codes, kind = _mapped(path, file[site])
        scale, _ = _mapped(path, file[site + SCALE]) if scaled else (None, "")
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
    return map_dataset(path, dataset), str(dataset.attrs["dtype"])
