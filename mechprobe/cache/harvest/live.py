"""Training without a whole store: the models run on the sequences of each window when it is needed.

``stream`` writes nothing and computes the shards of a window in memory, one model after another. ``ring`` writes shard
files ahead of training, within a given size (`mechprobe.cache.harvest.ring`). Both serve rows in the order ``shards``. A
whole store can serve this order too (``ActivationStore.open(..., order="shards")``), and training then gives the same
weights, byte for byte on a CPU. Later stages use a small store with a subset of the rows (`StoreSubset`).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.forward_batches import ModelReader, collect_shard
from mechprobe.cache.harvest.ring import Ring
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.batches import FillRows, ServingSession
from mechprobe.cache.store.dtypes import STORED_AS, row_width
from mechprobe.cache.store.row_source import ModelIndex, RowSource
from mechprobe.cache.store.token_file import WHOLE_STREAM, read_tokens
from mechprobe.data.stream import TokenStream
from mechprobe.errors import ArtifactError
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.progress import progress
from mechprobe.types import Site


class LiveActivations(RowSource):
    """Activations of models that run during training. Use `LiveActivations.open`.

    Attributes:
        family: The models, in the order of the model axis.
        ring: Folder that shard files pass through, in mode ``ring``.
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
        models = [ModelIndex(model.name, model.fingerprint, model.d_model) for model in family]
        super().__init__(
            kept.folder, stream, models, sites=kept.sites, dtype=kept.dtype, order="shards", scale_rows=kept.scale_rows
        )
        self.family, self._kept = family, kept
        known = kept.manifest["config"]
        self._config = CacheConfig(**{name: known[name] for name in CacheConfig.model_fields if name in known})
        self._all_in_memory = all_in_memory
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
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
        """Open the whole token stream of a store that keeps a subset, and run the models on it.

        Args:
            folder: Store that `cache_activations` wrote with ``kept``.
            family: Its models.
            models: Models to run, in this order; None runs all in the order in which they were cached.
            all_in_memory: Keep every model loaded; otherwise the models are loaded one after another for each window.
            ring: Folder and size in GB (1e9 bytes) of a ring of shard files; None writes nothing.

        Raises:
            ArtifactError: The folder is missing, is unfinished, or holds a whole store.
            StoreError: A model or the tokenizer differs from the cached one, or the ring is too small.
        """
        kept = ActivationStore.open(folder, models, order="shards")
        if kept.subset is None:
            raise ArtifactError(
                f"{folder} is a whole store; train from it with mode 'cache', or give another --cache for mode 'stream'."
            )
        kept.check_family(family)
        kept.scale_rows = kept.subset.scale_rows
        stream = read_tokens(Path(folder), WHOLE_STREAM)
        return cls(kept, stream, family.subset(*kept.models), all_in_memory=all_in_memory, ring=ring)

    def __repr__(self) -> str:
        names = ", ".join(self.models)
        return f"LiveActivations({str(self.folder)!r}: {self.n_rows:,} rows of {names}, mode {self.mode})"

    @property
    def kept(self) -> ActivationStore:
        """The store on disk: leading shards and held-out sequences."""
        return self._kept

    def scale(self, site: Site | str | None = None) -> Float[Tensor, " model"]:
        """Per model, the mean L2 norm of training rows over √d_model, from the leading shards on disk."""
        return self._kept.scale(site)

    @contextmanager
    def serving(self, session: ServingSession) -> Iterator[None]:
        """Run the producer of the ring while batches are served."""
        with self.ring.producing(session) if self.ring else nullcontext():
            try:
                yield
            finally:
                session.ended.set()

    @contextmanager
    def window(self, session: ServingSession, first_block: int, shards: Sequence[int]) -> Iterator[FillRows]:
        """Compute the rows of a window in memory, or copy them from the ring."""
        if self.ring is not None:
            yield self.ring.window(session, first_block)
            return
        made = self._make(session, shards)

        def fill(out: np.ndarray, start: int) -> None:
            out[:] = made.pop(start)  # each shard is used once

        yield fill

    def _make(self, session: ServingSession, shards: Sequence[int]) -> dict[int, np.ndarray]:
        """First row of every shard to its stored rows ``[row d_stored]``; each model runs once over all shards."""
        ranges = [self.stream.shards[index].rows for index in shards]
        dtype = STORED_AS[self.dtype]
        made = {rows.start: np.empty((len(rows), self.d_stored), dtype=dtype) for rows in ranges}
        column = 0
        for name, d_model in self.widths.items():
            width = row_width(self.dtype, d_model)
            for index in shards:
                rows = self.make_shard(session, name, index)
                made[self.stream.shards[index].rows.start][:, column : column + width] = rows
            self.release(name)
            column += width
        return made

    def make_shard(self, session: ServingSession, model: str, index: int) -> np.ndarray:
        """Stored rows of one model and shard, with the same bytes that `cache_activations` writes."""
        if session.ended.is_set():
            raise CancelledError
        plain = self._kept.shards_of(model)[0].forward.get("reader") == "plain"
        residuals, shard = ModelReader("plain" if plain else "bridge").residuals, self.stream.shards[index]
        running, sites = self.family[model], [session.site]
        with (
            progress(len(shard.rows), f"running {model}", unit="tokens", inner=True) as advance,
            self._own_stream(running),
        ):
            arrays = collect_shard(running, self.stream, shard, sites, self._config, residuals, advance)
        return arrays[str(session.site)]

    def _own_stream(self, model: LanguageModel) -> AbstractContextManager[object]:
        """On a GPU, the models compute in a CUDA stream of their own: they would wait for all training steps that are queued."""
        device = torch.device(model.device)
        if device.type != "cuda" or model.device_map is not None:
            return nullcontext()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
            self._streams[device].wait_stream(torch.cuda.default_stream(device))  # weights that are loaded already
        return torch.cuda.stream(self._streams[device])

    def release(self, model: str) -> None:
        """Release the weights of a model, unless all models stay in memory."""
        if not self._all_in_memory:
            self.family[model].release()

    def close(self) -> None:
        """Release the models and remove the files of the ring."""
        self.family.release()
        if self.ring is not None:
            self.ring.remove()
