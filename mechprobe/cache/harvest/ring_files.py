"""Shard files in the folder of a ring."""

from pathlib import Path

import numpy as np

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.disk import translate_disk_errors
from mechprobe.cache.store.dtypes import row_bytes, row_width, training_norms
from mechprobe.cache.store.mapped_rows import ShardHeader, map_rows
from mechprobe.cache.store.shards import finished_shard, shard_file, write_shard
from mechprobe.data.stream import ShardRange, TokenStream
from mechprobe.files import remove_partial_files

_OVERHEAD = 16384
"""Maximum bytes of a shard file and its record in addition to the rows."""


class RingFiles:
    """The shard files of all models in the folder of a ring."""

    def __init__(self, folder: Path, stream: TokenStream, widths: dict[str, int], dtype: StoreDtype) -> None:
        self.folder, self.stream, self.widths = folder, stream, widths
        self.dtype: StoreDtype = dtype

    def rows(self, index: int) -> range:
        """Rows of a shard."""
        return self.stream.shards[index].rows

    def n_bytes(self, index: int) -> int:
        """Maximum size of a shard's files of all models, in bytes."""
        n_rows = len(self.rows(index))
        return sum(n_rows * row_bytes(self.dtype, width) + _OVERHEAD for width in self.widths.values())

    def open(self) -> dict[int, int]:
        """Create the folder; returns index and size of the complete shards, and removes all other files."""
        with translate_disk_errors(self.folder):
            for name in self.widths:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            remove_partial_files(self.folder)
        present = {shard.index: self.n_bytes(shard.index) for shard in self.stream.shards if self._complete(shard)}
        for shard in self.stream.shards:
            if shard.index not in present:
                self.remove(shard.index)
        return present

    def _complete(self, shard: ShardRange) -> bool:
        folders = [self.folder / name for name in self.widths]
        return all(finished_shard(folder, shard, self.stream.hash) is not None for folder in folders)

    def write(self, model: str, index: int, arrays: dict[str, np.ndarray]) -> None:
        """Write one shard of one model."""
        rows = self.rows(index)
        training = ~self.stream.rows.held_out[rows.start : rows.stop]
        write_shard(
            self.folder / model,
            self.stream.shards[index],
            arrays,
            model=model,
            dtype=self.dtype,
            stream_hash=self.stream.hash,
            norms=training_norms(arrays, training, self.dtype),
        )

    def copy_into(self, out: np.ndarray, index: int, site: str) -> None:
        """Fill ``out`` ``[row d_stored]`` with the rows of a shard of all models."""
        rows, column = self.rows(index), 0
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
