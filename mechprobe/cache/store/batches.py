"""Shuffled batches of a store: every row exactly once an epoch, in an order that a seed and a position determine.

Blocks of consecutive rows are permuted; the blocks of one window fill a pool in memory; the pool's rows are permuted
and served. Rows of one block stand in one pool, and sequences were permuted when the stream was made. The order is a
pure function of (seed, epoch, window), so the position is one number: rows served.

A block is ``block_rows`` rows, or a whole shard. With whole shards a window can be made by running the models on the
sequences of its shards, so this order is the same from a store, from the models and from a ring of shard files.
"""

from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor

from mechprobe.cache.store.dtypes import STORED_AS
from mechprobe.errors import StoreError
from mechprobe.types import Site

if TYPE_CHECKING:
    from mechprobe.cache.store.source import RowSource, Serving

Order = Literal["blocks", "shards"]
Split = Literal["train", "held_out", "all"]
Pool = tuple[np.ndarray, np.ndarray]
"""Rows as they are stored, and a permutation of them."""


class ShuffledBatches:
    """An iterable of float32 batches ``[batch model d_model]`` with ``state_dict`` and ``load_state_dict``.

    Iterating goes on from the position; a new object starts at 0. As a context it ends, on leaving, whatever reads
    ahead: needed where an exception keeps an iterator alive.
    """

    def __init__(
        self,
        store: "RowSource",
        batch_size: int,
        seed: int,
        *,
        site: Site,
        split: Split,
        epochs: int | None,
        block_rows: int | None,
        pool_rows: int,
    ) -> None:
        if min(batch_size, block_rows or 1, pool_rows) < 1 or (epochs is not None and epochs < 1) or block_rows == 0:
            raise StoreError("batch_size, block_rows, pool_rows and epochs must be at least 1.")
        self._store = store
        self._site = site
        self.batch_size = batch_size
        self.epochs = epochs
        self.rows_served = 0
        self._settings = {
            "stream": store.stream_hash,
            "models": list(store.models),
            "site": str(site),
            "split": split,
            "seed": seed,
            "batch_size": batch_size,
            "block_rows": block_rows,
            "pool_rows": pool_rows,
        }
        self._seed = seed
        self._serving: Serving | None = None
        self._in_split = store.in_split(split)
        self._blocks, shards = _blocks(store, block_rows)
        counts = np.add.reduceat(self._in_split, self._blocks[:, 0]) if len(self._blocks) else np.zeros(0)
        self._blocks, self._shards = self._blocks[counts > 0], shards[counts > 0]
        self._counts = counts[counts > 0].astype(np.int64)
        self.n_rows = int(self._counts.sum())
        self._pool_rows = pool_rows
        self._window: tuple[tuple[int, int], Pool] | None = None
        self._ahead: dict[tuple[int, int], Future[Pool]] = {}
        self._known_windows: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}
        if self.n_rows == 0:
            raise StoreError(f"{store.folder} has no {split} rows; cache with another held_out_frac, or more prompts.")

    @property
    def distinct_rows(self) -> int:
        """Different rows served so far."""
        return min(self.rows_served, self.n_rows)

    def state_dict(self) -> dict[str, Any]:
        """The position, and the settings that it belongs to."""
        return {"rows_served": self.rows_served, **self._settings}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go to a position; `StoreError` where it belongs to other settings or another store."""
        for name, value in self._settings.items():
            if state.get(name) != value:
                raise StoreError(
                    f"The saved position is of {name} = {state.get(name)!r}, these batches have {value!r}; "
                    "resume with the same settings and store."
                )
        self.rows_served = int(state["rows_served"])

    def __iter__(self) -> Iterator[Tensor]:
        from mechprobe.cache.store.source import Serving

        total = None if self.epochs is None else self.epochs * self.n_rows
        self._window = None
        self._ahead.clear()
        self._serving = serving = Serving(self._site, self._shard_at, self._first_read())
        # One thread reads the next window while this one is served; it ends with the iteration.
        with (
            self._store.serving(serving),
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="activations") as reader,
        ):
            try:
                while total is None or self.rows_served < total:
                    n_rows = self.batch_size if total is None else min(self.batch_size, total - self.rows_served)
                    batch = self._serve(self.rows_served, n_rows, reader)
                    self.rows_served += n_rows
                    yield batch
            finally:
                serving.ended.set()

    def __enter__(self) -> "ShuffledBatches":
        return self

    def __exit__(self, *raised: object) -> None:
        """End what works ahead for the iteration in progress, though an iterator may still be referred to."""
        if self._serving is not None:
            self._serving.ended.set()

    def _first_read(self) -> int:
        """Number, over all epochs, of the first read of the window at the position."""
        epoch, within = divmod(self.rows_served, self.n_rows)
        windows, ends = self._windows(epoch)
        number = int(np.searchsorted(ends, within, side="right"))
        return epoch * len(self._blocks) + sum(len(window) for window in windows[:number])

    def _shard_at(self, read: int) -> int | None:
        """Shard of the n-th read over all epochs; None behind the last."""
        epoch, place = divmod(read, len(self._blocks))
        if self.epochs is not None and epoch >= self.epochs:
            return None
        for window in self._windows(epoch)[0]:
            if place < len(window):
                return int(self._shards[np.sort(window)[place]])
            place -= len(window)
        raise AssertionError("the windows hold every block")

    def _serve(self, start: int, n_rows: int, reader: Executor) -> Tensor:
        """Rows ``start`` to ``start + n_rows`` of the endless order."""
        parts = []
        while n_rows > 0:
            epoch, within = divmod(start, self.n_rows)
            ends = self._windows(epoch)[1]
            number = int(np.searchsorted(ends, within, side="right"))
            pool, order = self._pool(epoch, number, reader)
            offset = within - (int(ends[number - 1]) if number else 0)
            part = pool[order[offset : offset + n_rows]]
            parts.append(part)
            start, n_rows = start + len(part), n_rows - len(part)
        return self._store.shaped(self._store.to_float(np.concatenate(parts) if len(parts) > 1 else parts[0]))

    def _windows(self, epoch: int) -> tuple[list[Int[np.ndarray, " block"]], Int[np.ndarray, " window"]]:
        """Blocks of every window of an epoch, and the number of rows served at the end of each."""
        known = self._known_windows.get(epoch)
        if known is not None:
            return known
        order = np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._blocks))
        served = np.cumsum(self._counts[order])
        window = (served - self._counts[order]) // self._pool_rows
        borders = np.flatnonzero(np.diff(window)) + 1
        windows = np.split(order, borders)
        ends = served[np.append(borders - 1, len(order) - 1)]
        # Two epochs are in use where one ends: the one served and the one read ahead.
        self._known_windows = {key: value for key, value in self._known_windows.items() if abs(key - epoch) <= 1}
        self._known_windows[epoch] = (windows, ends)
        return windows, ends

    def _pool(self, epoch: int, number: int, reader: Executor) -> Pool:
        """Rows of one window as they are stored, and the order in which they are served."""
        key = (epoch, number)
        if self._window is None or self._window[0] != key:
            self._window = None
            waiting = self._ahead.pop(key, None)
            self._window = (key, waiting.result() if waiting is not None else self._read(*key))
            following = (epoch, number + 1) if number + 1 < len(self._windows(epoch)[0]) else (epoch + 1, 0)
            if self.epochs is None or following[0] < self.epochs:
                self._ahead = {following: reader.submit(self._read, *following)}
        return self._window[1]

    def _read(self, epoch: int, number: int) -> Pool:
        assert self._serving is not None, "rows are read while batches are served"
        windows = self._windows(epoch)[0]
        blocks = np.sort(windows[number])
        first = epoch * len(self._blocks) + sum(len(window) for window in windows[:number])
        width, stored_as = self._store.d_stored, STORED_AS[self._store.dtype]
        pool = np.empty((int(self._counts[blocks].sum()), width), dtype=stored_as)
        row = 0
        with self._store.window(self._serving, first, self._shards[blocks].tolist()) as read:
            for (start, stop), count in zip(self._blocks[blocks].tolist(), self._counts[blocks].tolist(), strict=True):
                if self._serving.ended.is_set():
                    raise CancelledError
                if count == stop - start:
                    read(pool[row : row + count], start)
                else:
                    whole = np.empty((stop - start, width), dtype=stored_as)
                    read(whole, start)
                    pool[row : row + count] = whole[self._in_split[start:stop]]
                row += count
        return pool, np.random.default_rng([self._seed, epoch, 1, number]).permutation(len(pool))


def _blocks(store: "RowSource", block_rows: int | None) -> tuple[Int[np.ndarray, "block 2"], Int[np.ndarray, " block"]]:
    """First and last row of every block, and its shard; a block lies in one shard."""
    bounds = [
        (start, min(start + (block_rows or len(shard.rows)), shard.rows.stop), shard.index)
        for shard in store.stream.shards
        for start in range(shard.rows.start, shard.rows.stop, block_rows or len(shard.rows))
    ]
    table = np.asarray(bounds, dtype=np.int64).reshape(-1, 3)
    return table[:, :2], table[:, 2]
