"""Shuffled batches of a store: every row exactly once an epoch, in an order that a seed and a position determine.

Blocks of consecutive rows are permuted; the blocks of one window fill a pool in memory; the pool's rows are permuted
and served. Rows of one block stand in one pool, and sequences were permuted when the stream was made. The order is a
pure function of (seed, epoch, window), so the position is one number: rows served.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechprobe.errors import StoreError
from mechprobe.types import Site

if TYPE_CHECKING:
    from mechprobe.activations.store import ActivationStore

Split = Literal["train", "held_out", "all"]


class ShuffledBatches:
    """An iterable of float32 batches ``[batch model d_model]`` with ``state_dict`` and ``load_state_dict``.

    Iterating goes on from the position; a new object starts at 0.
    """

    def __init__(
        self,
        store: "ActivationStore",
        batch_size: int,
        seed: int,
        *,
        site: Site,
        split: Split,
        epochs: int | None,
        block_rows: int,
        pool_rows: int,
    ) -> None:
        if min(batch_size, block_rows, pool_rows) < 1 or (epochs is not None and epochs < 1):
            raise StoreError("batch_size, block_rows, pool_rows and epochs must be at least 1.")
        self._store = store
        self._site = site
        self.batch_size = batch_size
        self.epochs = epochs
        self.rows_served = 0
        self._settings = {
            "stream": store.stream_hash, "models": list(store.models), "site": str(site), "split": split,
            "seed": seed, "batch_size": batch_size, "block_rows": block_rows, "pool_rows": pool_rows,
        }
        self._seed = seed
        self._in_split = store.in_split(split)
        self._blocks = _blocks(store, block_rows)
        counts = np.add.reduceat(self._in_split, self._blocks[:, 0]) if len(self._blocks) else np.zeros(0)
        self._blocks = self._blocks[counts > 0]
        self._counts = counts[counts > 0].astype(np.int64)
        self.n_rows = int(self._counts.sum())
        self._pool_rows = pool_rows
        self._window: tuple[tuple[int, int], Tensor] | None = None
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
        total = None if self.epochs is None else self.epochs * self.n_rows
        while total is None or self.rows_served < total:
            n_rows = self.batch_size if total is None else min(self.batch_size, total - self.rows_served)
            batch = self._serve(self.rows_served, n_rows)
            self.rows_served += n_rows
            yield batch

    def _serve(self, start: int, n_rows: int) -> Tensor:
        """Rows ``start`` to ``start + n_rows`` of the endless order."""
        parts = []
        while n_rows > 0:
            epoch, within = divmod(start, self.n_rows)
            windows, ends = self._windows(epoch)
            number = int(np.searchsorted(ends, within, side="right"))
            pool = self._pool(epoch, number, windows[number])
            offset = within - (int(ends[number - 1]) if number else 0)
            part = pool[offset : offset + n_rows]
            parts.append(part)
            start, n_rows = start + len(part), n_rows - len(part)
        return self._store.shaped(parts[0].clone() if len(parts) == 1 else torch.cat(parts))

    def _windows(self, epoch: int) -> tuple[list[Int[np.ndarray, " block"]], Int[np.ndarray, " window"]]:
        """Blocks of every window of an epoch, and the number of rows served at the end of each."""
        cached = getattr(self, "_epoch_windows", None)
        if cached is not None and cached[0] == epoch:
            return cached[1], cached[2]
        order = np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._blocks))
        served = np.cumsum(self._counts[order])
        window = (served - self._counts[order]) // self._pool_rows
        borders = np.flatnonzero(np.diff(window)) + 1
        windows = np.split(order, borders)
        ends = served[np.append(borders - 1, len(order) - 1)]
        self._epoch_windows = (epoch, windows, ends)
        return windows, ends

    def _pool(self, epoch: int, number: int, blocks: Int[np.ndarray, " block"]) -> Tensor:
        if self._window is None or self._window[0] != (epoch, number):
            self._window = None
            parts = []
            for start, stop in self._blocks[np.sort(blocks)].tolist():
                parts.append(self._store.stored_rows(start, stop, self._site)[self._in_split[start:stop]])
            pool = np.concatenate(parts)
            order = np.random.default_rng([self._seed, epoch, 1, number]).permutation(len(pool))
            self._window = ((epoch, number), torch.from_numpy(pool[order]))
        return self._window[1]


def _blocks(store: "ActivationStore", block_rows: int) -> Int[np.ndarray, "block 2"]:
    """First and last row of every block; a block lies in one shard."""
    bounds = [
        (start, min(start + block_rows, shard.rows.stop))
        for shard in store.stream.shards
        for start in range(shard.rows.start, shard.rows.stop, block_rows)
    ]
    return np.asarray(bounds, dtype=np.int64).reshape(-1, 2)
