"""A folder of bounded size that shard files pass through: written ahead of training and removed behind it.

A thread computes the shards in the order in which training needs them, and writes each of them atomically, as in a
store. When the next shard does not fit, the file that is needed last is removed, if it is needed later than the new
shard; otherwise the thread waits for training. A ring that holds all shards therefore becomes a cache after one
epoch. After an interruption, complete files are reused and missing ones are computed again, to the same bytes.

The producer is a thread and not a process: torch runs forward passes outside the interpreter lock, the models are loaded
only once, and no process is left behind when training is killed.
"""

import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.background import Background
from mechprobe.cache.store.batches import FillRows, ServingSession
from mechprobe.cache.store.disk import free_bytes, translate_disk_errors
from mechprobe.cache.store.dtypes import row_bytes, row_width
from mechprobe.cache.store.shards import ShardHeader, finished_shard, map_rows, shard_file, write_shard
from mechprobe.data.stream import TokenStream
from mechprobe.errors import StoreError
from mechprobe.files import remove_partial_files

_OVERHEAD = 16384
"""Maximum bytes of a shard file and its record in addition to the rows."""


class RingFiles:
    """The shard files of all models in the folder of a ring."""

    def __init__(self, folder: Path, stream: TokenStream, widths: dict[str, int], dtype: StoreDtype) -> None:
        self.folder, self.stream, self.widths = folder, stream, widths
        self.dtype: StoreDtype = dtype

    def n_bytes(self, index: int) -> int:
        """Maximum size of a shard's files of all models, in bytes."""
        n_rows = len(self.stream.shards[index].rows)
        return sum(n_rows * row_bytes(self.dtype, width) + _OVERHEAD for width in self.widths.values())

    def open(self) -> dict[int, int]:
        """Create the folder; returns index and size of the complete shards, and removes all other files."""
        with translate_disk_errors(self.folder):
            for name in self.widths:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            remove_partial_files(self.folder)
        present = {}
        for shard in self.stream.shards:
            if all(finished_shard(self.folder / name, shard, self.stream.hash) for name in self.widths):
                present[shard.index] = self.n_bytes(shard.index)
            else:
                self.remove(shard.index)
        return present

    def write(self, model: str, index: int, arrays: dict[str, np.ndarray]) -> None:
        """Write one shard of one model."""
        shard = self.stream.shards[index]
        write_shard(self.folder / model, shard, arrays, model=model, dtype=self.dtype, stream=self.stream)

    def copy_into(self, out: np.ndarray, index: int, site: str) -> None:
        """Fill ``out`` ``[row d_stored]`` with the rows of a shard of all models."""
        rows, column = self.stream.shards[index].rows, 0
        for name, d_model in self.widths.items():
            header = ShardHeader(self.stream.hash, name, rows.start, len(rows), d_model, self.dtype)
            width = row_width(self.dtype, d_model)
            mapped = map_rows(self.folder / name / shard_file(index), site, header)
            mapped.copy_into(out[:, column : column + width], 0)
            column += width

    def remove(self, index: int) -> None:
        """Remove the files of a shard, its records first."""
        for name in self.widths:
            path = self.folder / name / shard_file(index)
            path.with_name(path.name + ".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


@runtime_checkable
class ShardProducer(Protocol):
    """What a ring needs to compute shards; `LiveActivations` runs the models."""

    stream: TokenStream
    dtype: StoreDtype

    @property
    def widths(self) -> dict[str, int]:
        """Model name to d_model."""
        ...

    def make_shard(self, session: ServingSession, model: str, index: int) -> np.ndarray:
        """Stored rows of one model and shard, ``[row row_width]``."""
        ...

    def release(self, model: str) -> None:
        """Called when the model has computed a group of shards."""
        ...


class Ring:
    """Shard files of all models in one folder, written by a thread and read by training.

    Attributes:
        folder: Contains one folder of shard files per model.
        max_bytes: Maximum size of the folder, with files that are being written.
        peak_bytes: Largest size so far.
    """

    def __init__(self, folder: Path, producer: ShardProducer, max_bytes: int, *, ahead: int | None = 1) -> None:
        self.folder, self.max_bytes, self.peak_bytes = folder, max_bytes, 0
        self._files = RingFiles(folder, producer.stream, producer.widths, producer.dtype)
        self._producer = producer
        largest = max(self._files.n_bytes(shard.index) for shard in producer.stream.shards)
        if max_bytes < 2 * largest:
            raise StoreError(
                f"A ring of {max_bytes / 1e9:.3g} GB cannot hold two shards of {largest / 1e9:.3g} GB; raise ring_gb "
                "or lower cache.shard_rows."
            )
        # Where models are loaded one after another, each of them computes several shards at a time.
        self._group = ahead or max(1, max_bytes // largest // 2)
        self._changed = threading.Condition()
        self._present: dict[int, int] = {}
        self._block = 0
        self._error: BaseException | None = None

    @contextmanager
    def producing(self, session: ServingSession) -> Iterator[None]:
        """Write shards ahead of training inside; complete files of an interrupted run are reused."""
        self._open()
        self._block, self._error = session.first_block, None
        thread = threading.Thread(target=self._produce, args=(session,), name="ring", daemon=True)
        thread.start()
        try:
            yield
        finally:
            session.ended.set()
            with self._changed:
                self._changed.notify_all()
            thread.join()

    def window(self, session: ServingSession, first_block: int) -> FillRows:
        """Function that copies the shards of a window in order, and waits until each of them is written."""
        with self._changed:
            self._block = first_block
            self._changed.notify_all()

        def fill(out: np.ndarray, start: int) -> None:
            index = session.shard_of(self._block)
            assert index is not None, "every block is in a shard"
            assert self._files.stream.shards[index].rows.start == start, (
                "shards are served in the order in which they are written"
            )
            self._await(index, session)
            self._files.copy_into(out, index, str(session.site))
            with self._changed:
                self._block += 1
                self._changed.notify_all()

        return fill

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._present.clear()

    def _await(self, index: int, session: ServingSession) -> None:
        with self._changed:
            while index not in self._present:
                if self._error is not None:
                    raise self._error
                if session.ended.is_set():
                    raise CancelledError
                self._changed.wait(timeout=1)  # the thread that ends the session does not hold the lock

    def _open(self) -> None:
        """Reuse complete shards of an interrupted run and remove all other files."""
        self._present = self._files.open()
        while sum(self._present.values()) > self.max_bytes:
            self._drop(next(iter(self._present)))
        missing = min(self.max_bytes, sum(self._files.n_bytes(s.index) for s in self._producer.stream.shards))
        missing -= sum(self._present.values())
        if missing > (free := free_bytes(self.folder)):
            raise StoreError(
                f"The ring needs {missing / 1e9:.3g} GB more, but only {free / 1e9:.3g} GB are free; free some space or "
                "lower ring_gb."
            )

    def _produce(self, session: ServingSession) -> None:
        try:
            block = session.first_block
            while not session.ended.is_set():
                group = self._next_group(session, block)
                if not group:
                    return
                self._write(session, [index for index in dict.fromkeys(group) if index not in self._present])
                block += len(group)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that trains
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_group(self, session: ServingSession, block: int) -> list[int]:
        """Shards of the next blocks that fit; waits until the first one fits. Empty after the last block."""
        group: list[int] = []
        while len(group) < self._group and (index := session.shard_of(block + len(group))) is not None:
            if not self._make_room(session, index, block + len(group), group, wait=not group):
                break
            group.append(index)
        return group

    def _make_room(self, session: ServingSession, index: int, block: int, group: list[int], *, wait: bool) -> bool:
        """Whether the shard of a block may be written; removes files that are needed later than the block."""
        if index in self._present or index in group:
            return True
        reserved = sum(self._files.n_bytes(other) for other in dict.fromkeys(group) if other not in self._present)
        with self._changed:
            while not session.ended.is_set():
                used = sum(self._present.values()) + reserved + self._files.n_bytes(index)
                if used <= self.max_bytes:
                    self.peak_bytes = max(self.peak_bytes, used)
                    return True
                latest = self._needed_last(session)
                if latest is not None and latest[1] > block and latest[0] not in group:
                    self._drop(latest[0])
                elif not wait:
                    return False
                else:
                    self._changed.wait(timeout=1)
        return False

    def _needed_last(self, session: ServingSession) -> tuple[int, int] | None:
        """The shard on disk that is needed last, and the number of its next block."""
        if not self._present:
            return None
        n_shards = len(self._producer.stream.shards)
        next_block: dict[int, int] = {}
        for block in range(self._block, self._block + 2 * n_shards + 1):
            index = session.shard_of(block)
            if index is None or len(next_block) == len(self._present):
                break
            if index in self._present:
                next_block.setdefault(index, block)
        never = self._block + 4 * n_shards
        return max(((index, next_block.get(index, never)) for index in self._present), key=lambda item: item[1])

    def _write(self, session: ServingSession, shards: Sequence[int]) -> None:
        with Background("ring writer") as writer:
            for name in self._producer.widths:
                for index in shards:
                    rows = self._producer.make_shard(session, name, index)
                    writer.submit(self._files.write, name, index, {str(session.site): rows})
                self._producer.release(name)
        with self._changed:
            self._present |= {index: self._files.n_bytes(index) for index in shards}
            self._changed.notify_all()

    def _drop(self, index: int) -> None:
        del self._present[index]
        self._files.remove(index)
