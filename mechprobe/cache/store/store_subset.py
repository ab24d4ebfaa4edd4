"""The part of a token stream that is kept on disk when training runs without a whole store.

The leading shards are kept as they are, so that their files equal the whole store's byte for byte, and behind them
sequences that are held out: enough for the scale, for held-out metrics and for the feature table.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from mechprobe.cache.store.source import SCALE_ROWS
from mechprobe.config import FrozenConfig
from mechprobe.data.stream import ShardRange, TokenRows, TokenStream

WHOLE_STREAM = "stream.h5"
"""The whole token stream, beside the kept store's own ``tokens.h5``."""

_ARRAYS = ("token_id", "sample", "position", "is_response", "held_out")


class StoreSubset(FrozenConfig):
    """How much is kept.

    Attributes:
        rows: Rows of the leading shards at least; behind them at most as many held-out rows of the others.
        scale_rows: Training rows of the leading shards at least: those that the scale is taken of.
    """

    rows: int = Field(default=131072, ge=1)
    scale_rows: int = Field(default=SCALE_ROWS, ge=1)


def kept_part(stream: TokenStream, kept: StoreSubset, shard_rows: int) -> TokenStream:
    """The stream of what is kept; the whole one where it is no longer than that."""
    leading = _leading_shards(stream, kept)
    first = leading[-1].sequences.stop
    n_rows, samples = 0, list(range(first))
    for sample in range(first, len(stream.sequences)):
        start, stop = (int(row) for row in stream.row_start[sample : sample + 2])
        if stream.rows.held_out[start]:
            n_rows += stop - start
            if n_rows > kept.rows:
                break
            samples.append(sample)
    lengths = np.diff(stream.row_start)[samples]
    row_start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    taken = np.concatenate([np.arange(*stream.row_start[sample : sample + 2]) for sample in samples])
    arrays = {name: getattr(stream.rows, name)[taken] for name in _ARRAYS}
    arrays["sample"] = np.repeat(np.arange(len(samples), dtype=np.int32), lengths)
    return TokenStream(
        sequences=tuple(stream.sequences[sample] for sample in samples),
        rows=TokenRows(**arrays),
        row_start=row_start,
        shards=(*leading, *_further_shards(row_start, leading, shard_rows)),
        tokenizer_fingerprint=stream.tokenizer_fingerprint,
    )


def _leading_shards(stream: TokenStream, kept: StoreSubset) -> Sequence[ShardRange]:
    n_training = np.cumsum([int((~stream.rows.held_out[s.rows.start : s.rows.stop]).sum()) for s in stream.shards])
    ends = np.asarray([shard.rows.stop for shard in stream.shards])
    enough = np.flatnonzero((n_training >= kept.scale_rows) & (ends >= kept.rows))
    return stream.shards[: int(enough[0]) + 1 if len(enough) else len(stream.shards)]


def _further_shards(row_start: np.ndarray, leading: Sequence[ShardRange], shard_rows: int) -> list[ShardRange]:
    """The sequences behind the leading shards, cut as `build_stream` cuts."""
    shards: list[ShardRange] = []
    first, n_sequences = leading[-1].sequences.stop, len(row_start) - 1
    while first < n_sequences:
        last = int(np.searchsorted(row_start, row_start[first] + shard_rows, side="right")) - 1
        last = max(last, first + 1)
        rows = range(int(row_start[first]), int(row_start[last]))
        shards.append(ShardRange(len(leading) + len(shards), range(first, last), rows))
        first = last
    return shards
