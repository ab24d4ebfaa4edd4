"""The subset of a token stream that is kept on disk when training runs without a whole store.

The leading shards are kept unchanged, so that their files equal those of a whole store byte for byte. Behind them come
held-out sequences: together they suffice for the scale, the held-out metrics and the feature table.
"""

from collections.abc import Sequence

import numpy as np

from mechprobe.cache.config import StoreSubset
from mechprobe.cache.store.token_file import ROW_COLUMNS
from mechprobe.data.stream import ShardRange, TokenRows, TokenStream


def subset_of(stream: TokenStream, subset: StoreSubset, shard_rows: int) -> TokenStream:
    """The stream of the rows that are kept; the whole stream where it is no longer than that."""
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
        shards=(*leading, *_further_shards(row_start, leading, shard_rows)),
        tokenizer_fingerprint=stream.tokenizer_fingerprint,
    )


def _leading_shards(stream: TokenStream, subset: StoreSubset) -> Sequence[ShardRange]:
    n_training = np.cumsum([int((~stream.rows.held_out[s.rows.start : s.rows.stop]).sum()) for s in stream.shards])
    ends = np.asarray([shard.rows.stop for shard in stream.shards])
    enough = np.flatnonzero((n_training >= subset.scale_rows) & (ends >= subset.rows))
    return stream.shards[: int(enough[0]) + 1 if len(enough) else len(stream.shards)]


def _further_shards(row_start: np.ndarray, leading: Sequence[ShardRange], shard_rows: int) -> list[ShardRange]:
    """Shards of the sequences behind the leading shards, with the same borders that `build_stream` would choose."""
    shards: list[ShardRange] = []
    first, n_sequences = leading[-1].sequences.stop, len(row_start) - 1
    while first < n_sequences:
        last = int(np.searchsorted(row_start, row_start[first] + shard_rows, side="right")) - 1
        last = max(last, first + 1)
        rows = range(int(row_start[first]), int(row_start[last]))
        shards.append(ShardRange(len(leading) + len(shards), range(first, last), rows))
        first = last
    return shards
