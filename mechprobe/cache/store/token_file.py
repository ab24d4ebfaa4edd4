"""The token stream on disk, one HDF5 file beside the shards; and the part of it that a store without all rows keeps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np

from mechprobe.cache.config import StoreSubset
from mechprobe.cache.store.disk import map_dataset, reading_hdf5, write_hdf5
from mechprobe.cache.store.shards import FORMAT
from mechprobe.data.stream import ROW_COLUMNS, ShardRange, TokenRows, TokenStream, divide_rows
from mechprobe.data.tokens import Document, TokenSequence
from mechprobe.errors import StoreError

TOKENS = "tokens.h5"
WHOLE_STREAM = "stream.h5"
"""The whole token stream of a store that keeps only a subset of the rows; ``tokens.h5`` then holds the subset."""


def write_tokens(folder: Path, stream: TokenStream, name: str = TOKENS) -> str:
    """Write a token stream; returns the sha256 of the file."""
    ids = [np.asarray(s.prompt_ids + s.response_ids, dtype=np.int32) for s in stream.sequences]
    names = [
        [s.id, s.prompt_id, s.task, s.source, s.n_cut, *([s.documents] if s.documents else [])]
        for s in stream.sequences
    ]
    arrays = {column: getattr(stream.rows, column) for column in ROW_COLUMNS}
    arrays |= {
        "row_start": stream.row_start,
        "sequence_ids": np.concatenate(ids),
        "sequence_start": np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64),
        "n_prompt": np.asarray([len(s.prompt_ids) for s in stream.sequences], dtype=np.int32),
        "shard_stop": np.asarray([shard.sequences.stop for shard in stream.shards], dtype=np.int64),
        "samples": np.frombuffer(json.dumps(names, ensure_ascii=False).encode(), dtype=np.uint8),
    }
    attributes = {"format": FORMAT, "stream": stream.hash, "tokenizer": stream.tokenizer_fingerprint}
    return write_hdf5(folder / name, arrays, attributes)


def read_tokens(folder: Path, name: str = TOKENS) -> TokenStream:
    """Map a token stream and check its hash. Processes that read the same file share the memory of its arrays.

    Raises:
        StoreError: The file is missing or damaged.
    """
    path = folder / name
    with reading_hdf5(path) as file:
        arrays = {str(column): map_dataset(path, file[str(column)]) for column in file}
        attributes = {key: file.attrs[key] for key in ("stream", "tokenizer")}
        stream = _stream(arrays, str(attributes["tokenizer"]))
    if stream.hash != attributes["stream"]:
        raise StoreError(f"{path} is damaged: its tokens do not match its hash; make the store again with --force.")
    return stream


class _MappedSequences(Sequence[TokenSequence]):
    """The sequences of a token file, each of which becomes Python objects when it is asked for."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._ids, self._start, self._n_prompt = (arrays[key] for key in ("sequence_ids", "sequence_start", "n_prompt"))
        self._names: list[list[Any]] = json.loads(arrays["samples"].tobytes().decode())

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: SupportsIndex) -> TokenSequence: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TokenSequence, ...]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> TokenSequence | tuple[TokenSequence, ...]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(*index.indices(len(self))))
        place = range(len(self))[index]
        identifier, prompt_id, task, source, n_cut, *packed = self._names[place]
        ids, cut = tuple(self._ids[self._start[place] : self._start[place + 1]].tolist()), int(self._n_prompt[place])
        documents = tuple(Document(*entry) for entry in (packed[0] if packed else ()))
        return TokenSequence(identifier, prompt_id, task, source, ids[:cut], ids[cut:], n_cut, documents)


def _stream(arrays: Mapping[str, np.ndarray], tokenizer: str) -> TokenStream:
    row_start, shards, first = arrays["row_start"], [], 0
    for index, last in enumerate(arrays["shard_stop"].tolist()):
        shards.append(ShardRange(index, range(first, last), range(int(row_start[first]), int(row_start[last]))))
        first = last
    rows = TokenRows(**{name: arrays[name] for name in ROW_COLUMNS})
    return TokenStream(_MappedSequences(arrays), rows, row_start, tuple(shards), tokenizer)


def subset_of(stream: TokenStream, subset: StoreSubset, shard_rows: int) -> TokenStream:
    """The rows that are kept when training runs without a whole store; all rows of a stream that is not longer.

    The leading shards are kept unchanged, so that their files equal those of a whole store byte for byte. Behind them come
    held-out sequences: together they suffice for the scale, the held-out metrics and the feature table.
    """
    leading = _leading_shards(stream, subset)
    first = leading[-1].sequences.stop
    n_rows, samples = 0, list(range(first))
    for sample in range(first, len(stream.sequences)):
        start, stop = (int(row) for row in stream.row_start[sample : sample + 2])
        if stream.rows.held_out[start]:
            n_rows += stop - start
            if n_rows > subset.rows:
                break
            samples.append(sample)
    lengths = np.diff(stream.row_start)[samples]
    row_start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    taken = np.concatenate([np.arange(*stream.row_start[sample : sample + 2]) for sample in samples])
    columns = {name: getattr(stream.rows, name)[taken] for name in ROW_COLUMNS}
    columns["sample"] = np.repeat(np.arange(len(samples), dtype=np.int32), lengths)
    return TokenStream(
        sequences=tuple(stream.sequences[sample] for sample in samples),
        rows=TokenRows(**columns),
        row_start=row_start,
        shards=divide_rows(row_start, shard_rows, leading),
        tokenizer_fingerprint=stream.tokenizer_fingerprint,
    )


def _leading_shards(stream: TokenStream, subset: StoreSubset) -> Sequence[ShardRange]:
    n_training = np.cumsum([int((~stream.rows.held_out[s.rows.start : s.rows.stop]).sum()) for s in stream.shards])
    ends = np.asarray([shard.rows.stop for shard in stream.shards])
    enough = np.flatnonzero((n_training >= subset.scale_rows) & (ends >= subset.rows))
    return stream.shards[: int(enough[0]) + 1 if len(enough) else len(stream.shards)]
