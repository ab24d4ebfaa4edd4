"""Training without a whole store: the models run on the sequences of each window when it is needed.

``stream`` writes nothing: a window's shards are made in memory, model after model. ``ring`` writes them ahead of
training, as files that are never more than a given size (`ring`). Both serve the rows in the order ``shards``, which a
store can serve too (``ActivationStore.open(..., order="shards")``): then training gives the same weights, byte for byte
on a CPU. What later stages need is a small store of the same work, the kept one (`kept`).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.forward_batches import collect_shard
from mechprobe.cache.harvest.readers import Reader
from mechprobe.cache.harvest.ring import Ring
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.dtypes import STORED_AS, row_width
from mechprobe.cache.store.shards import read_tokens
from mechprobe.cache.store.source import ModelIndex, ReadRows, RowSource, Serving
from mechprobe.cache.store.store_subset import WHOLE_STREAM, StoreSubset
from mechprobe.data.stream import TokenStream
from mechprobe.errors import ArtifactError
from mechprobe.models.family import ModelFamily


class LiveActivations(RowSource):
    """Activations of models that are run while training goes on; open it with `LiveActivations.open`.

    Attributes:
        family: The models, in the order of the model axis.
        ring: Where shard files pass through, in mode ``ring``.
    """

    def __init__(
        self,
        kept: ActivationStore,
        stream: TokenStream,
        family: ModelFamily,
        *,
        all_in_memory: bool = True,
        ring: tuple[Path, float] | None = None,
    ) -> None:
        kept_rows = StoreSubset(**kept.manifest["config"]["kept"])
        models = [ModelIndex(model.name, model.fingerprint, model.d_model) for model in family]
        super().__init__(
            kept.folder,
            stream,
            models,
            sites=kept.sites,
            dtype=kept.dtype,
            order="shards",
            scale_rows=kept_rows.scale_rows,
        )
        self.family = family
        self._kept = kept
        known = kept.manifest["config"]
        self._config = CacheConfig(**{name: known[name] for name in CacheConfig.model_fields if name in known})
        self._all_in_memory = all_in_memory
        self.ring = Ring(ring[0], self, int(ring[1] * 1e9), ahead=1 if all_in_memory else None) if ring else None
        self.mode: Literal["cache", "stream", "ring"] = "ring" if ring else "stream"

    @classmethod
    def open(
        cls,
        folder: Path | str,
        family: ModelFamily,
        models: Sequence[str] | None = None,
        *,
        all_in_memory: bool = True,
        ring: tuple[Path, float] | None = None,
    ) -> "LiveActivations":
        """The whole stream of a kept store, with the models to read it.

        Args:
            folder: A store that `cache_activations` wrote with ``kept``.
            family: Its models.
            models: Which of them to read, in which order; None takes all in the order they were cached.
            all_in_memory: Keep every model loaded; otherwise one after another is loaded for each window.
            ring: Folder and size in GB (1e9 bytes) of a ring of shard files; None writes nothing.

        Raises:
            ArtifactError: The folder is missing, unfinished, or a whole store.
            StoreError: A model or the tokenizer is not what the store was made from; the ring is too small.
        """
        kept = ActivationStore.open(folder, models, order="shards")
        if not kept.manifest["config"].get("kept"):
            raise ArtifactError(
                f"{folder} holds every row; train from it with mode 'cache', or give another --cache for mode 'stream'."
            )
        kept.check_family(family)
        kept.scale_rows = StoreSubset(**kept.manifest["config"]["kept"]).scale_rows
        stream = read_tokens(Path(folder), WHOLE_STREAM)
        return cls(kept, stream, family.subset(*kept.models), all_in_memory=all_in_memory, ring=ring)

    def __repr__(self) -> str:
        names = ", ".join(self.models)
        return f"LiveActivations({str(self.folder)!r}: {self.n_rows:,} rows of {names}, mode {self.mode})"

    @property
    def kept(self) -> ActivationStore:
        """The store on disk: leading shards and held-out sequences."""
        return self._kept

    @contextmanager
    def serving(self, serving: Serving) -> Iterator[None]:
        """Runs the ring's producer while batches are served."""
        with self.ring.producing(serving) if self.ring else nullcontext():
            try:
                yield
            finally:
                serving.ended.set()

    @contextmanager
    def window(self, serving: Serving, first: int, shards: Sequence[int]) -> Iterator[ReadRows]:
        """Make the rows of a window in memory, or take them from the ring."""
        if self.ring is not None:
            yield self.ring.reader(serving, first)
            return
        made = self._make(serving, shards)

        def read(out: np.ndarray, start: int) -> None:
            out[:] = made.pop(start)  # each shard is read once

        yield read

    def _make(self, serving: Serving, shards: Sequence[int]) -> dict[int, np.ndarray]:
        """First row of every shard to its rows of all models, ``[row d_stored]``; each model runs once over all."""
        ranges = [self.stream.shards[index].rows for index in shards]
        dtype = STORED_AS[self.dtype]
        made = {rows.start: np.empty((len(rows), self.d_stored), dtype=dtype) for rows in ranges}
        column = 0
        for name, d_model in self.widths.items():
            width = row_width(self.dtype, d_model)
            for index in shards:
                rows = self.make_shard(serving, name, index)
                made[self.stream.shards[index].rows.start][:, column : column + width] = rows
            self.release(name)
            column += width
        return made

    def make_shard(self, serving: Serving, model: str, index: int) -> np.ndarray:
        """One model's rows of a shard as they are stored: the same bytes that a cache writes."""
        if serving.ended.is_set():
            raise CancelledError
        way = self._kept.shards_of(model)[0].forward.get("reader")
        arrays = collect_shard(
            self.family[model],
            self.stream,
            self.stream.shards[index],
            [serving.site],
            self._config,
            Reader("plain" if way == "plain" else "bridge").read,
        )
        return arrays[str(serving.site)]

    def release(self, model: str) -> None:
        """Drop a model's weights where not all may be in memory."""
        if not self._all_in_memory:
            self.family[model].release()

    def close(self) -> None:
        """Drop the models and the ring's files."""
        self.family.release()
        if self.ring is not None:
            self.ring.remove()
