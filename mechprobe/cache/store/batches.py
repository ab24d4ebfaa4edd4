"""Shuffled batches: every row exactly once per epoch, in an order that the seed and the position determine.

Blocks of consecutive rows are permuted. The blocks of one window fill a pool in memory, and the rows of the pool are
permuted and served. All rows of a block are in one pool; sequences were already permuted when the stream was made. The
order is a pure function of (seed, epoch, window), so a position is one number: the rows served so far.

A block has ``block_rows`` rows, or is a whole shard. The rows of whole shards can be computed by running the models on
their sequences, so this order is the same from a store, from running models and from a ring of shard files.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.dtypes import STORED_AS
from mechprobe.cache.store.sending import Sender
from mechprobe.data.stream import TokenStream
from mechprobe.errors import StoreError
from mechprobe.types import Site

Order = Literal["blocks", "shards"]
"""``blocks`` mixes rows of all shards. ``shards`` builds every pool from whole shards, which needs no whole store."""

Split = Literal["train", "held_out", "all"]

FillRows = Callable[[np.ndarray, int], None]
"""``(out, start)``: fills ``out`` ``[row d_stored]`` with the stored rows of all models from row ``start`` on."""

Pool = tuple[np.ndarray, np.ndarray]
"""Stored rows, and the permutation in which they are served."""

Window = tuple[int, int]
"""Epoch, and number of the window in the epoch."""

_BATCHES_AHEAD = 2
"""Number of batches that are made, and on a GPU sent, while one is in use."""


@dataclass(frozen=True)
class ServingSession:
    """One iteration over batches, as a source sees it.

    Attributes:
        site: Site of the rows.
        shard_of: Block number to the index of its shard; None after the last block.
        first_block: Number of the first block.
        ended: Set when no more batches are needed.
    """

    site: Site
    shard_of: Callable[[int], int | None]
    first_block: int
    ended: threading.Event = field(default_factory=threading.Event)


@runtime_checkable
class BlockSource(Protocol):
    """Rows of several models on one token stream, which are served block by block; `RowSource` implements it.

    Attributes:
        folder: Folder of the store.
        stream: The tokens of every row.
        models: Names in the order of the model axis.
        dtype: Dtype of the stored rows.
    """

    folder: Path
    stream: TokenStream
    models: tuple[str, ...]
    dtype: StoreDtype

    @property
    def d_stored(self) -> int:
        """Number of entries in a stored row of all models."""
        ...

    def in_split(self, split: Split) -> Bool[np.ndarray, " row"]:
        """Mask of the rows in a split."""
        ...

    def to_float(self, stored: Tensor) -> Float[Tensor, "row d_all"]:
        """Stored rows as float32 on the same device, models concatenated."""
        ...

    def shaped(self, flat: Float[Tensor, "row d_all"]) -> Float[Tensor, "row *model_and_d_model"]:
        """``[row model d_model]`` where all models have one width, else unchanged."""
        ...

    def serving(self, session: ServingSession) -> AbstractContextManager[None]:
        """Context in which the batches of a session are served; a source that works ahead does so inside it."""
        ...

    def window(
        self, session: ServingSession, first_block: int, shards: Sequence[int]
    ) -> AbstractContextManager[FillRows]:
        """Context that fills the blocks of one pool, in order: block ``first_block`` and one for each of ``shards``."""
        ...


class ShuffledBatches:
    """An iterable of float32 batches ``[batch model d_model]`` with ``state_dict`` and ``load_state_dict``.

    Iteration continues from the position, which is 0 at first. Used as a context manager, it ends background work on
    exit, also where an exception keeps an iterator alive.
    """

    def __init__(
        self,
        source: BlockSource,
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
        self._source, self._site, self._seed = source, site, seed
        self.batch_size, self.epochs, self.rows_served = batch_size, epochs, 0
        self._settings = {
            "stream": source.stream.hash,
            "models": list(source.models),
            "site": str(site),
            "split": split,
            "seed": seed,
            "batch_size": batch_size,
            "block_rows": block_rows,
            "pool_rows": pool_rows,
        }
        self._session: ServingSession | None = None
        self._in_split = source.in_split(split)
        self._blocks, shards = _blocks(source.stream, block_rows)
        counts = np.add.reduceat(self._in_split, self._blocks[:, 0]) if len(self._blocks) else np.zeros(0)
        self._blocks, self._shards = self._blocks[counts > 0], shards[counts > 0]
        self._counts = counts[counts > 0].astype(np.int64)
        self.n_rows = int(self._counts.sum())
        self._pool_rows = pool_rows
        self._device = torch.device("cpu")
        self._known_windows: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}
        if self.n_rows == 0:
            raise StoreError(f"{source.folder} has no {split} rows; cache more prompts, or set another held_out_frac.")

    def to(self, device: torch.device | str) -> "ShuffledBatches":
        """Send the batches to a GPU ahead of their use. On other devices they stay on the host."""
        self._device = torch.device(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The position, and the settings it is valid for."""
        return {"rows_served": self.rows_served, **self._settings}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from a position; `StoreError` when it belongs to other settings or another store."""
        for name, value in self._settings.items():
            if state.get(name) != value:
                raise StoreError(
                    f"The saved position has {name} = {state.get(name)!r}, these batches have {value!r}; "
                    "resume with the same settings and store."
                )
        self.rows_served = int(state["rows_served"])

    def __iter__(self) -> Iterator[Tensor]:
        self._session = session = ServingSession(self._site, self._shard_of, self._first_block())
        # One thread fills the next pool while another makes batches of this one; both end with the iteration.
        with (
            self._source.serving(session),
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="activations") as filling,
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as serving,
        ):
            pools = _Pools(partial(self._fill, session), self._following, filling)
            serve = partial(self._serve, session, pools, Sender(self._device))
            places, waiting = self._places(), deque[tuple[int, Future[Callable[[], Tensor]]]]()
            try:
                while True:
                    for start, n_rows in islice(places, _BATCHES_AHEAD + 1 - len(waiting)):
                        waiting.append((n_rows, serving.submit(serve, start, n_rows)))
                    if not waiting:
                        return
                    n_rows, served = waiting.popleft()
                    batch = served.result()()
                    self.rows_served += n_rows
                    yield batch
            finally:
                session.ended.set()

    def _places(self) -> Iterator[tuple[int, int]]:
        """First row and number of rows of every batch from the position on, in the endless order."""
        start, total = self.rows_served, None if self.epochs is None else self.epochs * self.n_rows
        while total is None or start < total:
            n_rows = self.batch_size if total is None else min(self.batch_size, total - start)
            yield start, n_rows
            start += n_rows

    def __enter__(self) -> "ShuffledBatches":
        return self

    def __exit__(self, *raised: object) -> None:
        """End the background work of the current iteration, even if an iterator is still referenced."""
        if self._session is not None:
            self._session.ended.set()

    def _first_block(self) -> int:
        """Number, over all epochs, of the first block of the window at the position."""
        epoch, within = divmod(self.rows_served, self.n_rows)
        windows, ends = self._windows(epoch)
        number = int(np.searchsorted(ends, within, side="right"))
        return epoch * len(self._blocks) + sum(len(window) for window in windows[:number])

    def _shard_of(self, block: int) -> int | None:
        """Shard of a block, which is numbered over all epochs; None after the last block."""
        epoch, place = divmod(block, len(self._blocks))
        if self.epochs is not None and epoch >= self.epochs:
            return None
        for window in self._windows(epoch)[0]:
            if place < len(window):
                return int(self._shards[np.sort(window)[place]])
            place -= len(window)
        raise AssertionError("the windows hold every block")

    def _serve(
        self, session: ServingSession, pools: "_Pools", sender: Sender, start: int, n_rows: int
    ) -> Callable[[], Tensor]:
        """Rows ``start`` to ``start + n_rows`` of the endless order, on their way to the device."""
        rows = sender.empty((n_rows, self._source.d_stored), torch.from_numpy(self._empty(0)).dtype)
        done, out = 0, rows.numpy()
        while done < n_rows:
            if session.ended.is_set():
                raise CancelledError
            epoch, within = divmod(start + done, self.n_rows)
            ends = self._windows(epoch)[1]
            number = int(np.searchsorted(ends, within, side="right"))
            pool, order = pools.get((epoch, number))
            offset = within - (int(ends[number - 1]) if number else 0)
            chosen = order[offset : offset + n_rows - done]
            # Without "clip", NumPy checks the places first and copies twice.
            np.take(pool, chosen, axis=0, out=out[done : done + len(chosen)], mode="clip")
            done += len(chosen)
        return sender.send(rows, lambda stored: self._source.shaped(self._source.to_float(stored)))

    def _windows(self, epoch: int) -> tuple[list[Int[np.ndarray, " block"]], Int[np.ndarray, " window"]]:
        """Blocks of every window of an epoch, and the number of rows served by the end of each window."""
        if epoch in self._known_windows:
            return self._known_windows[epoch]
        order = np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._blocks))
        served = np.cumsum(self._counts[order])
        window = (served - self._counts[order]) // self._pool_rows
        borders = np.flatnonzero(np.diff(window)) + 1
        # At the end of an epoch two epochs are in use: the one being served and the one being prepared.
        self._known_windows = {key: value for key, value in self._known_windows.items() if abs(key - epoch) <= 1}
        self._known_windows[epoch] = np.split(order, borders), served[np.append(borders - 1, len(order) - 1)]
        return self._known_windows[epoch]

    def _following(self, window: Window) -> Window | None:
        """The window after another one; None after the last."""
        epoch, number = window
        if number + 1 < len(self._windows(epoch)[0]):
            return epoch, number + 1
        return (epoch + 1, 0) if self.epochs is None or epoch + 1 < self.epochs else None

    def _fill(self, session: ServingSession, window: Window) -> Pool:
        epoch, number = window
        windows = self._windows(epoch)[0]
        blocks = np.sort(windows[number])
        first = epoch * len(self._blocks) + sum(len(window) for window in windows[:number])
        pool = self._empty(int(self._counts[blocks].sum()))
        row = 0
        with self._source.window(session, first, self._shards[blocks].tolist()) as fill:
            for (start, stop), count in zip(self._blocks[blocks].tolist(), self._counts[blocks].tolist(), strict=True):
                if session.ended.is_set():
                    raise CancelledError
                if count == stop - start:
                    fill(pool[row : row + count], start)
                else:
                    block = self._empty(stop - start)
                    fill(block, start)
                    pool[row : row + count] = block[self._in_split[start:stop]]
                row += count
        return pool, np.random.default_rng([self._seed, epoch, 1, number]).permutation(len(pool))

    def _empty(self, n_rows: int) -> np.ndarray:
        """An uninitialized array of stored rows."""
        return np.empty((n_rows, self._source.d_stored), dtype=STORED_AS[self._source.dtype])


class _Pools:
    """The pool of the window that is served, and that of the next one, which a thread fills meanwhile."""

    def __init__(
        self, fill: Callable[[Window], Pool], following: Callable[[Window], Window | None], filling: Executor
    ) -> None:
        self._fill, self._following, self._filling = fill, following, filling
        self._current: tuple[Window, Pool] | None = None
        self._next: dict[Window, Future[Pool]] = {}

    def get(self, window: Window) -> Pool:
        """The pool of a window; begins to fill that of the next one."""
        if self._current is None or self._current[0] != window:
            self._current = None  # at most two pools are in memory
            waiting = self._next.pop(window, None)
            self._current = window, self._fill(window) if waiting is None else waiting.result()
            following = self._following(window)
            self._next = {} if following is None else {following: self._filling.submit(self._fill, following)}
        return self._current[1]


def _blocks(
    stream: TokenStream, block_rows: int | None
) -> tuple[Int[np.ndarray, "block 2"], Int[np.ndarray, " block"]]:
    """First and last row of every block, and the shard that contains it."""
    bounds = [
        (start, min(start + (block_rows or len(shard.rows)), shard.rows.stop), shard.index)
        for shard in stream.shards
        for start in range(shard.rows.start, shard.rows.stop, block_rows or len(shard.rows))
    ]
    table = np.asarray(bounds, dtype=np.int64).reshape(-1, 3)
    return table[:, :2], table[:, 2]
