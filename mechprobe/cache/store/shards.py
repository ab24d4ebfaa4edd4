"""The files of a store: immutable HDF5 shards, and the token stream beside them.

A shard is written whole to ``.partial``, closed, fsynced, hashed, renamed, and then listed in a small JSON beside it;
what is listed is never opened for writing again. Its datasets are contiguous and uncompressed, so that a reader can
map them at their file offset. Every file is readable with plain h5py.
"""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.dtypes import SCALE, datasets
from mechprobe.data.stream import ShardRange, TokenRows, TokenStream
from mechprobe.data.tokens import Document, TokenSequence
from mechprobe.errors import ArtifactError, StoreError
from mechprobe.files import read_json, sha256_file, write_json

logger = logging.getLogger(__name__)

TOKENS = "tokens.h5"
INDEX = "index.json"
FORMAT = "mechprobe activations 1"
_ROWS = ("token_id", "sample", "position", "is_response", "held_out")


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What is listed of a finished shard.

    Attributes:
        file: Name in the model's folder.
        start: First row.
        n_rows: Number of rows.
        n_bytes: Size of the file.
        sha256: Of the file.
        stream: Hash of the token stream that it belongs to.
        norm_sum: Per site, the sum of the L2 norms of its training rows.
        n_norms: Number of training rows.
        forward: How its rows were read: ``reader``, ``batch_tokens`` (of one forward pass, after any back-off) and
            ``proof`` of the reader. Empty in stores made before it was kept.
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
    """Name of a shard's file."""
    return f"shard_{index:05d}.h5"


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one sentence; what was finished before stays usable."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 gives what fails while a file is closed as RuntimeError
        text, number = str(error), getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "Disk quota" in text
        if full:
            raise StoreError(
                f"The disk is full at {path}; make space and run the same command again, it goes on from there."
            ) from None
        if number == errno.EFBIG or "File too large" in text:
            raise StoreError(
                f"{path} is larger than this file system or `ulimit -f` lets a file be; lift the limit and run the same "
                "command again, or lower shard_rows."
            ) from None
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"{path} cannot be written: {os.strerror(number)}; give another --out.") from None
        raise


def write_hdf5(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> str:
    """Write contiguous datasets, whole or not at all; returns the file's sha256.

    An array's own attributes are given as ``attributes["name:key"]``.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with translate_disk_errors(path):
            _require_room(partial, sum(array.nbytes for array in arrays.values()))
            with h5py.File(partial, "w") as file:
                for name, array in arrays.items():
                    file.create_dataset(name, data=array)
                for key, value in attributes.items():
                    owner, _, name = key.rpartition(":")
                    (file[owner] if owner else file).attrs[name] = value
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            digest = sha256_file(partial)
            partial.replace(path)
            sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return digest


def _require_room(path: Path, n_bytes: int) -> None:
    """Raise the system's `OSError` where a file of this size has no place.

    HDF5 that fails while it closes a file leaves objects behind that can crash the interpreter when it ends.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(n_bytes, 1))


@contextmanager
def sole_writer(folder: Path, *, part: bool = False) -> Iterator[None]:
    """Keep a second process from writing into the same store; the lock goes with the process.

    Args:
        folder: Of the store.
        part: This process writes its own shards only, and others that do the same may write beside it.

    Raises:
        StoreError: Another process is writing.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if part else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"Another process is writing {folder}; wait for it, or give another --out.") from None
        except OSError:  # a file system without locks
            logger.warning("%s cannot be locked; let only one process write it", folder)
        yield
    finally:
        os.close(handle)


def remove_partial_files(folder: Path) -> None:
    """Drop what a killed process was in the middle of writing; nothing listed is ever called so."""
    for path in folder.rglob("*.partial"):
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_shard(
    folder: Path,
    shard: ShardRange,
    arrays: Mapping[str, np.ndarray],
    *,
    model: str,
    dtype: StoreDtype,
    stream_hash: str,
    norms: tuple[dict[str, float], int],
    forward: Mapping[str, str | int] | None = None,
) -> ShardRecord:
    """Write one shard of one model and list it; ``arrays`` are rows as in memory, per site (`numbers`)."""
    name = shard_file(shard.index)
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "model": model,
        "stream": stream_hash,
        "start": shard.rows.start,
        "n_rows": len(shard.rows),
    }
    written: dict[str, np.ndarray] = {}
    for site, array in arrays.items():
        written |= datasets(site, array, dtype)
        attributes[f"{site}:dtype"] = dtype
        if site + SCALE in written:
            attributes |= {f"{site}:scale": site + SCALE, f"{site + SCALE}:dtype": "float32"}
    digest = write_hdf5(folder / name, written, attributes)
    norm_sum, n_norms = norms
    record = ShardRecord(
        file=name,
        start=shard.rows.start,
        n_rows=len(shard.rows),
        n_bytes=(folder / name).stat().st_size,
        sha256=digest,
        stream=stream_hash,
        norm_sum=norm_sum,
        n_norms=n_norms,
        forward=dict(forward or {}),
    )
    with translate_disk_errors(folder / name):
        write_json(folder / f"{name}.json", asdict(record))
    return record


def finished_shard(folder: Path, shard: ShardRange, stream_hash: str) -> ShardRecord | None:
    """The record of a shard of this stream that is listed and has its full size; None when it is to be made."""
    name = shard_file(shard.index)
    try:
        record = ShardRecord(**read_json(folder / f"{name}.json"))
    except (ArtifactError, TypeError):
        return None
    path = folder / name
    whole = path.is_file() and path.stat().st_size == record.n_bytes
    same = (record.start, record.n_rows, record.stream) == (shard.rows.start, len(shard.rows), stream_hash)
    return record if whole and same else None


def write_tokens(folder: Path, stream: TokenStream, name: str = TOKENS) -> str:
    """Write a token stream; returns the file's sha256."""
    ids = [np.asarray(s.prompt_ids + s.response_ids, dtype=np.int32) for s in stream.sequences]
    arrays = {column: getattr(stream.rows, column) for column in _ROWS}
    arrays |= {
        "row_start": stream.row_start,
        "sequence_ids": np.concatenate(ids),
        "sequence_start": np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64),
        "n_prompt": np.asarray([len(s.prompt_ids) for s in stream.sequences], dtype=np.int32),
        "shard_stop": np.asarray([shard.sequences.stop for shard in stream.shards], dtype=np.int64),
        "samples": np.frombuffer(_samples_text(stream).encode(), dtype=np.uint8),
    }
    attributes = {"format": FORMAT, "stream": stream.hash, "tokenizer": stream.tokenizer_fingerprint}
    return write_hdf5(folder / name, arrays, attributes)


def _samples_text(stream: TokenStream) -> str:
    rows = [
        [s.id, s.prompt_id, s.task, s.source, s.n_cut, *([s.documents] if s.documents else [])]
        for s in stream.sequences
    ]
    return json.dumps(rows, ensure_ascii=False)


def read_tokens(folder: Path, name: str = TOKENS) -> TokenStream:
    """Read a token stream back, and check that it is the one its hash was taken of.

    Raises:
        StoreError: The file is missing or damaged.
    """
    path = folder / name
    try:
        with h5py.File(path, "r") as file:
            arrays = {str(column): np.asarray(file[str(column)]) for column in file}
            attributes = {key: file.attrs[key] for key in ("stream", "tokenizer")}
        stream = _stream(arrays, str(attributes["tokenizer"]))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; make the store again with `mechprobe cache`.") from None
    except (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}); make the store again with --force.") from None
    if stream.hash != attributes["stream"]:
        raise StoreError(f"{path} is damaged: its tokens do not have their hash; make the store again with --force.")
    return stream


def _stream(arrays: Mapping[str, np.ndarray], tokenizer: str) -> TokenStream:
    names = json.loads(arrays["samples"].tobytes().decode())
    ids, start, n_prompt = arrays["sequence_ids"].tolist(), arrays["sequence_start"].tolist(), arrays["n_prompt"]
    sequences = []
    for index, (identifier, prompt_id, task, source, n_cut, *packed) in enumerate(names):
        whole, cut = tuple(ids[start[index] : start[index + 1]]), int(n_prompt[index])
        documents = tuple(Document(*entry) for entry in (packed[0] if packed else ()))
        sequences.append(TokenSequence(identifier, prompt_id, task, source, whole[:cut], whole[cut:], n_cut, documents))
    row_start, shards, first = arrays["row_start"], [], 0
    for index, last in enumerate(arrays["shard_stop"].tolist()):
        shards.append(ShardRange(index, range(first, last), range(int(row_start[first]), int(row_start[last]))))
        first = last
    rows = TokenRows(**{name: arrays[name] for name in _ROWS})
    return TokenStream(tuple(sequences), rows, row_start, tuple(shards), tokenizer)
