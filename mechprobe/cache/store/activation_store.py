"""A finished activation store: rows of all models in the same order, with hashes of every file."""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.cache.config import SCALE_ROWS, StoreSubset
from mechprobe.cache.store.batches import FillRows, Order, ServingSession
from mechprobe.cache.store.disk import reading_hdf5
from mechprobe.cache.store.dtypes import STORED_AS, from_stored, row_width
from mechprobe.cache.store.norms import DROPPED, SiteNorms, StoreNorms
from mechprobe.cache.store.row_source import ModelIndex, RowSource
from mechprobe.cache.store.shards import INDEX, MappedRows, ShardHeader, ShardRecord, map_rows
from mechprobe.cache.store.token_file import read_tokens
from mechprobe.cache.store.verify import Problem, verify_store
from mechprobe.data.stream import TokenStream
from mechprobe.data.tokens import Document
from mechprobe.display import Displayed
from mechprobe.environment import require
from mechprobe.errors import ArtifactError, StoreError
from mechprobe.files import read_json
from mechprobe.stage_folder import MANIFEST, read_manifest
from mechprobe.types import Site

if TYPE_CHECKING:
    import pandas as pd

_MAX_MAPS = 1024
"""Maximum number of shard files that are mapped at once."""


@dataclass(frozen=True)
class StoredSequence:
    """One sequence, as it is given to the models.

    Attributes:
        id: Id of the prompt, followed by ``#source`` where a model wrote the response.
        prompt_id: Id of the prompt.
        task: Task of the prompt.
        source: Model and temperature of a generated response; None when the prompt file gave the response.
        ids: Token ids, special tokens included.
        kept: Whether each position has a row that is not dropped.
        response: Whether each position is a response token.
        held_out: Whether the sequence is held out from training.
        rows: Rows of the sequence in the store, dropped ones included.
        documents: Position of each packed document; empty where documents are not packed.
    """

    id: str
    prompt_id: str
    task: str | None
    source: str | None
    ids: tuple[int, ...]
    kept: tuple[bool, ...]
    response: tuple[bool, ...]
    held_out: bool
    rows: range
    documents: tuple[Document, ...] = ()


class ActivationStore(Displayed, RowSource):
    """A finished activation store. Use `ActivationStore.open`.

    Attributes:
        manifest: Manifest of the stage that wrote the store.
    """

    def __init__(
        self,
        folder: Path,
        stream: TokenStream,
        models: Sequence[ModelIndex],
        manifest: dict[str, Any],
        *,
        order: Order = "blocks",
        scale_rows: int = SCALE_ROWS,
    ) -> None:
        config = manifest["config"]
        sites = [Site.parse(site) for site in config["sites"]]
        super().__init__(folder, stream, models, sites=sites, dtype=config["dtype"], order=order, scale_rows=scale_rows)
        self.manifest, self.settings = manifest, config
        if config.get("drop_norm_above") is not None:
            with reading_hdf5(folder / DROPPED) as file:
                self.dropped[np.asarray(file["row"])] = True
        self._starts = [shard.rows.start for shard in stream.shards]
        ends = list(accumulate((row_width(self.dtype, width) for width in self.widths.values()), initial=0))
        self._columns = [(name, slice(*columns)) for name, columns in zip(self.models, pairwise(ends), strict=True)]
        self._maps: dict[tuple[str, int, str], MappedRows] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        folder: Path | str,
        models: Sequence[str] | None = None,
        *,
        order: Order = "blocks",
        scale_rows: int = SCALE_ROWS,
    ) -> "ActivationStore":
        """Open a finished store.

        Args:
            folder: Folder written by `cache_activations`.
            models: Models to open, in this order; None opens all in the order in which they were cached.
            order: ``shards`` serves whole shards and computes the scale from the leading shards. The modes ``stream``
                and ``ring`` do the same, so training gives the same weights.
            scale_rows: Number of training rows that give the scale in the order ``shards``.

        Raises:
            ArtifactError: The folder is missing, is unfinished, or belongs to another stage.
            StoreError: Files of the store do not match each other, or it does not contain a model.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest["stage"] != "cache":
            raise ArtifactError(f"{folder} holds the stage '{manifest['stage']}', not a store; give another folder.")
        stream = read_tokens(folder)
        names = list(manifest["results"]["models"]) if models is None else list(models)
        indices = [_read_index(folder, name, manifest, stream) for name in names]
        return cls(folder, stream, indices, manifest, order=order, scale_rows=scale_rows)

    def _in_short(self) -> str:
        sites = ", ".join(str(site) for site in self.sites)
        return f"{str(self.folder)!r}: {self.n_rows:,} rows of {', '.join(self.models)} at {sites}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per model and site: norms of its rows, far rows and massive dimensions; none in a store of an earlier release."""
        found = self.norms.models if self.norms else {}
        names = ("median", "q99", "largest", "n_far", "n_massive")
        rows = [
            {"model": model, "site": site, "n_rows": self.n_rows, **{name: getattr(one, name) for name in names}}
            for model, sites in found.items()
            for site, one in sites.items()
        ]
        return require("pandas", "The table of norms").DataFrame(rows, columns=["model", "site", "n_rows", *names])

    @property
    def kept(self) -> "ActivationStore":
        """The store itself."""
        return self

    @property
    def subset(self) -> StoreSubset | None:
        """What this store keeps of a longer token stream; None when it is a whole store."""
        found = self.manifest["config"].get("kept")
        return None if found is None else StoreSubset(**found)

    @property
    def norms(self) -> StoreNorms | None:
        """Norm quantiles, massive dimensions and far rows of all models; None in a store of an earlier release."""
        found = self.manifest["results"].get("norms")
        return None if found is None else StoreNorms.checked(found, self.folder / MANIFEST)

    @property
    def n_samples(self) -> int:
        """Number of sequences."""
        return len(self.stream.sequences)

    def shards_of(self, model: str) -> tuple[ShardRecord, ...]:
        """Records of the shards of a model, in row order."""
        return self._models[model].shards

    def sequence(self, sample: int) -> StoredSequence:
        """The sequence with index ``sample``."""
        if not 0 <= sample < self.n_samples:
            raise StoreError(f"Sequence {sample} does not exist; {self.folder} has {self.n_samples}.")
        stored = self.stream.sequences[sample]
        first, last = (int(row) for row in self.stream.row_start[sample : sample + 2])
        kept = np.zeros(len(stored.ids), dtype=bool)
        kept[self.tokens.position[first:last][~self.dropped[first:last]]] = True
        return StoredSequence(
            id=stored.id,
            prompt_id=stored.prompt_id,
            task=stored.task,
            source=stored.source,
            ids=stored.ids,
            kept=tuple(kept.tolist()),
            response=tuple(stored.is_response.tolist()),
            held_out=bool(self.tokens.held_out[first]),
            rows=range(first, last),
            documents=stored.documents,
        )

    def held_out_samples(self) -> list[int]:
        """Indices of the sequences that are held out from training."""
        return np.unique(self.tokens.sample[self.tokens.held_out]).tolist()

    def rows(self, start: int, stop: int, site: Site | str | None = None) -> Float[Tensor, "row *model_and_d_model"]:
        """Consecutive rows as float32.

        Returns:
            ``[row model d_model]``, or ``[row d_all]`` where the widths of the models differ.
        """
        return self.shaped(self.to_float(torch.from_numpy(self.stored_bytes(start, stop, site))))

    def rows_of(
        self, model: str, start: int, stop: int, site: Site | str | None = None
    ) -> Float[Tensor, "row d_model"]:
        """Consecutive rows of one model, as float32."""
        return from_stored(self.stored_rows_of(model, start, stop, site), self.dtype).float()

    def verify(self) -> list[Problem]:
        """Hash every file again; returns one problem for each file that changed."""
        return verify_store(self.folder)

    def stored_bytes(self, start: int, stop: int, site: Site | str | None = None) -> np.ndarray:
        """Consecutive stored rows of all models, concatenated, ``[row d_stored]``."""
        self._require_rows(start, stop)
        out = np.empty((stop - start, self.d_stored), dtype=STORED_AS[self.dtype])
        self.fill(out, start, self.resolve_site(site))
        return out

    def fill(self, out: np.ndarray, start: int, site: Site) -> None:
        """Fill ``out`` ``[row d_stored]`` with the stored rows from ``start`` on."""
        name_of_site = str(site)
        for model, columns in self._columns:
            self._fill_model(out[:, columns], model, start, name_of_site)

    def stored_rows_of(self, model: str, start: int, stop: int, site: Site | str | None = None) -> np.ndarray:
        """Consecutive stored rows of one model, ``[row row_width]``."""
        if model not in self._models:
            raise StoreError(f"{self.folder} holds {', '.join(self.models)}, not '{model}'; cache that model too.")
        self._require_rows(start, stop)
        width = row_width(self.dtype, self._models[model].d_model)
        out = np.empty((stop - start, width), dtype=STORED_AS[self.dtype])
        self._fill_model(out, model, start, str(self.resolve_site(site)))
        return out

    def _require_rows(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_rows:
            raise StoreError(f"Rows {start} to {stop} do not exist; {self.folder} has {self.n_rows}.")

    def _fill_model(self, out: np.ndarray, model: str, start: int, site: str) -> None:
        done, n_rows = 0, len(out)
        while done < n_rows:
            row = start + done
            index = bisect_right(self._starts, row) - 1
            rows = self.stream.shards[index].rows
            stop = min(n_rows, done + rows.stop - row)
            self._mapped(model, index, site).copy_into(out[done:stop], row - rows.start)
            done = stop

    def _mapped(self, model: str, index: int, site: str) -> MappedRows:
        key = (model, index, site)
        found = self._maps.get(key)
        return self._map(key) if found is None else found

    def _map(self, key: tuple[str, int, str]) -> MappedRows:
        model, index, site = key
        rows, known = self.stream.shards[index].rows, self._models[model]
        header = ShardHeader(self.stream_hash, model, rows.start, len(rows), known.d_model, self.dtype)
        with self._lock:
            if len(self._maps) >= _MAX_MAPS:
                del self._maps[next(iter(self._maps))]
            self._maps[key] = found = map_rows(self.folder / model / known.shards[index].file, site, header)
        return found

    @contextmanager
    def window(self, session: ServingSession, first_block: int, shards: Sequence[int]) -> Iterator[FillRows]:
        """Copy rows from the shard files."""
        del first_block, shards
        yield partial(self.fill, site=session.site)


def _read_index(folder: Path, name: str, manifest: dict[str, Any], stream: TokenStream) -> ModelIndex:
    if name not in manifest["models"]:
        names = ", ".join(manifest["models"])
        raise StoreError(f"{folder} holds {names}, not '{name}'; cache that model too.")
    path = folder / name / INDEX
    index = read_json(path)
    try:
        shards = tuple(ShardRecord(**record) for record in index["shards"])
        norms = manifest["results"].get("norms", {}).get("models", {}).get(name, {})
        own = {site: SiteNorms.checked(found, folder / MANIFEST) for site, found in norms.items()}
        model = ModelIndex(name, index["fingerprint"], index["d_model"], shards, own)
        pairs = [("stream", index["stream"], stream.hash), ("model", model.fingerprint, manifest["models"][name])]
    except (KeyError, TypeError):
        raise StoreError(f"{path} is damaged; make the store again with --force.") from None
    for what, found, expected in pairs:
        if found != expected:
            raise StoreError(f"{path} belongs to another {what} ({found} there, {expected} expected); cache again.")
    if [(s.start, s.n_rows) for s in shards] != [(s.rows.start, len(s.rows)) for s in stream.shards]:
        raise StoreError(f"{path} does not list the rows of the token stream; make the store again with --force.")
    return model
