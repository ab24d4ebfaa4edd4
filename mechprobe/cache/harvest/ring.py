"""Shard files that pass through a folder of bounded size: written ahead of training, dropped behind it.

A thread makes the shards in the order in which training will read them and writes them as a store's are written, whole
or not at all. Where the next one would not fit, the file that is needed latest is dropped, if that is later than the
new one; otherwise the thread waits for training. A ring that holds everything so becomes a cache after one epoch. After
an interruption whole files are used again and missing ones made again, to the same bytes.

A thread and not a process: the forward passes of torch run outside the interpreter's lock, the models need not be
loaded twice, and there is nothing left behind when training is killed.
"""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mechprobe.cache.harvest.plan import free_bytes
from mechprobe.cache.store.dtypes import row_bytes, row_width, training_norms
from mechprobe.cache.store.rows import ShardHeader, map_rows
from mechprobe.cache.store.shards import (
    finished_shard,
    remove_partial_files,
    shard_file,
    translate_disk_errors,
    write_shard,
)
from mechprobe.cache.store.source import ReadRows, Serving
from mechprobe.errors import StoreError

if TYPE_CHECKING:
    from mechprobe.cache.harvest.live import LiveActivations

_OVERHEAD = 16384
"""Bytes of a shard file and its record beyond the rows, at most."""


class Ring:
    """The folder, and who writes and reads it.

    Attributes:
        folder: One folder a model, with shard files.
        max_bytes: Never more than this lies there, files being written counted.
        peak_bytes: The most that did.
    """

    def __init__(self, folder: Path, source: "LiveActivations", max_bytes: int, *, ahead: int | None = 1) -> None:
        self.folder, self.max_bytes, self.peak_bytes = folder, max_bytes, 0
        self._source = source
        largest = max(self._shard_bytes(shard.index) for shard in source.stream.shards)
        if max_bytes < 2 * largest:
            raise StoreError(
                f"A ring of {max_bytes / 1e9:.3g} GB does not hold two shards of {largest / 1e9:.3g} GB; raise ring_gb "
                "or lower cache.shard_rows."
            )
        # Where models are loaded one after another, each runs over several shards.
        self._group = ahead or max(1, max_bytes // largest // 2)
        self._changed = threading.Condition()
        self._present: dict[int, int] = {}
        self._place = 0
        self._error: BaseException | None = None

    @contextmanager
    def producing(self, serving: Serving) -> Iterator[None]:
        """Make shards ahead while inside; what is there from before is used."""
        self._open()
        self._place, self._error = serving.start, None
        producer = threading.Thread(target=self._produce, args=(serving,), name="ring", daemon=True)
        producer.start()
        try:
            yield
        finally:
            serving.ended.set()
            with self._changed:
                self._changed.notify_all()
            producer.join()

    def reader(self, serving: Serving, first: int) -> ReadRows:
        """Reads the shards of a window, one after another, waiting for each to be written."""
        with self._changed:
            self._place = first
            self._changed.notify_all()

        def read(out: np.ndarray, start: int) -> None:
            index = serving.shard_at(self._place)
            assert index is not None, "there is a shard for every read"
            shard = self._source.stream.shards[index]
            assert shard.rows.start == start, "shards are read in the order in which they are made"
            self._await(index, serving)
            self._copy(out, index, serving)
            with self._changed:
                self._place += 1
                self._changed.notify_all()

        return read

    def remove(self) -> None:
        """Drop the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._present.clear()

    def _await(self, index: int, serving: Serving) -> None:
        with self._changed:
            while index not in self._present:
                if self._error is not None:
                    raise self._error
                if serving.ended.is_set():
                    raise CancelledError
                self._changed.wait(timeout=1)  # whoever ends the serving has no hold of the lock

    def _copy(self, out: np.ndarray, index: int, serving: Serving) -> None:
        source, column = self._source, 0
        rows = source.stream.shards[index].rows
        for name, d_model in source.widths.items():
            header = ShardHeader(source.stream_hash, name, rows.start, len(rows), d_model, source.dtype)
            width = row_width(source.dtype, d_model)
            mapped = map_rows(self.folder / name / shard_file(index), str(serving.site), header)
            mapped.copy_into(out[:, column : column + width], 0)
            column += width

    def _open(self) -> None:
        """Take over whole shards of an interrupted run, and drop everything else."""
        source = self._source
        with translate_disk_errors(self.folder):
            for name in source.models:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            remove_partial_files(self.folder)
        self._present = {}
        for shard in source.stream.shards:
            folders = [self.folder / name for name in source.models]
            if all(finished_shard(folder, shard, source.stream_hash) is not None for folder in folders):
                self._present[shard.index] = self._shard_bytes(shard.index)
            else:
                self._drop_files(shard.index)
        while sum(self._present.values()) > self.max_bytes:
            self._drop(next(iter(self._present)))
        missing = min(self.max_bytes, sum(self._shard_bytes(s.index) for s in source.stream.shards))
        missing -= sum(self._present.values())
        if missing > (free := free_bytes(self.folder)):
            raise StoreError(
                f"The ring needs {missing / 1e9:.3g} GB more and {free / 1e9:.3g} GB are free; make space, or lower "
                "ring_gb."
            )

    def _shard_bytes(self, index: int) -> int:
        n_rows = len(self._source.stream.shards[index].rows)
        widths = self._source.widths.values()
        return sum(n_rows * row_bytes(self._source.dtype, width) + _OVERHEAD for width in widths)

    def _produce(self, serving: Serving) -> None:
        try:
            read = serving.start
            while not serving.ended.is_set():
                group = self._next_group(serving, read)
                if not group:
                    return
                new = [index for index in dict.fromkeys(group) if index not in self._present]
                self._write(serving, new)
                read += len(group)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that reads
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_group(self, serving: Serving, read: int) -> list[int]:
        """Shards of the next reads for which there is room, waiting for the first; none where nothing is left."""
        group: list[int] = []
        while len(group) < self._group and (index := serving.shard_at(read + len(group))) is not None:
            if not self._make_room(serving, index, read + len(group), group, wait=not group):
                break
            group.append(index)
        return group

    def _make_room(self, serving: Serving, index: int, read: int, group: list[int], *, wait: bool) -> bool:
        """Whether the shard of read number ``read`` may be written; drops files that are needed later."""
        if index in self._present or index in group:
            return True
        reserved = sum(self._shard_bytes(other) for other in dict.fromkeys(group) if other not in self._present)
        with self._changed:
            while not serving.ended.is_set():
                used = sum(self._present.values()) + reserved
                if used + self._shard_bytes(index) <= self.max_bytes:
                    self.peak_bytes = max(self.peak_bytes, used + self._shard_bytes(index))
                    return True
                latest = self._needed_latest(serving)
                if latest is not None and latest[1] > read and latest[0] not in group:
                    self._drop(latest[0])
                elif not wait:
                    return False
                else:
                    self._changed.wait(timeout=1)
        return False

    def _needed_latest(self, serving: Serving) -> tuple[int, int] | None:
        """The shard on disk whose next read is last, and the number of that read."""
        if not self._present:
            return None
        next_read: dict[int, int] = {}
        for read in range(self._place, self._place + 2 * len(self._source.stream.shards) + 1):
            index = serving.shard_at(read)
            if index is None or len(next_read) == len(self._present):
                break
            if index in self._present:
                next_read.setdefault(index, read)
        never = self._place + 4 * len(self._source.stream.shards)
        return max(((index, next_read.get(index, never)) for index in self._present), key=lambda item: item[1])

    def _write(self, serving: Serving, shards: list[int]) -> None:
        source = self._source
        for name in source.models:
            for index in shards:
                shard, site = source.stream.shards[index], str(serving.site)
                arrays = {site: source.make_shard(serving, name, index)}
                training = ~source.stream.rows.held_out[shard.rows.start : shard.rows.stop]
                write_shard(
                    self.folder / name,
                    shard,
                    arrays,
                    model=name,
                    dtype=source.dtype,
                    stream_hash=source.stream_hash,
                    norms=training_norms(arrays, training, source.dtype),
                )
            source.release(name)
        with self._changed:
            self._present |= {index: self._shard_bytes(index) for index in shards}
            self._changed.notify_all()

    def _drop(self, index: int) -> None:
        del self._present[index]
        self._drop_files(index)

    def _drop_files(self, index: int) -> None:
        for name in self._source.models:
            path = self.folder / name / shard_file(index)
            path.with_name(path.name + ".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
