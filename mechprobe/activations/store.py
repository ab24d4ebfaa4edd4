"""Reading a store: rows of all models in the same order, shuffled batches, and the proof that nothing changed."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mechprobe.activations.batches import ShuffledBatches, Split
from mechprobe.activations.config import StoreDtype
from mechprobe.activations.numbers import STORED_AS, from_stored
from mechprobe.activations.shards import INDEX, ShardRecord, read_tokens
from mechprobe.activations.verify import Problem, verify_store
from mechprobe.artifacts import read_json, read_manifest
from mechprobe.data.stream import TokenRows, TokenStream
from mechprobe.data.tokens import Document
from mechprobe.errors import ArtifactError, SiteError, StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site

_MAX_MAPS = 1024
"""Shard files mapped at once; the system allows tens of thousands."""


@dataclass(frozen=True)
class ModelIndex:
    """What the store holds of one model."""

    name: str
    fingerprint: str
    d_model: int
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True)
class StoredSequence:
    """One sequence as the models read it.

    Attributes:
        id: Of the prompt, with ``#source`` behind it where a model wrote the response.
        prompt_id: Of the prompt.
        task: Of the prompt.
        source: Which model wrote the response, and at what temperature; None when the prompt file gave it.
        ids: Token ids, special ones included.
        kept: Which positions have a row.
        response: Which positions are response tokens.
        held_out: Whether it is kept from training.
        rows: Its rows in the store.
        documents: Where each document stands in it, when several are packed; empty otherwise.
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


class ActivationStore:
    """A finished store; open it with `ActivationStore.open`.

    Attributes:
        folder: Where it lies.
        models: Names, in the order of the model axis.
        sites: Sites it holds, shallow to deep.
        dtype: Of the numbers on disk.
        n_rows: Number of cached tokens.
    """

    def __init__(self, folder: Path, stream: TokenStream, models: Sequence[ModelIndex], **shape: Any) -> None:
        self.folder = folder
        self.stream = stream
        self._models = {model.name: model for model in models}
        self.models = tuple(self._models)
        self.sites: tuple[Site, ...] = tuple(Site.parse(site) for site in shape["sites"])
        self.dtype: StoreDtype = shape["dtype"]
        self.manifest: dict[str, Any] = shape["manifest"]
        self.n_rows = stream.n_rows
        self._starts = np.asarray([shard.rows.start for shard in stream.shards])
        self._maps: OrderedDict[tuple[str, int, str], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path | str, models: Sequence[str] | None = None) -> "ActivationStore":
        """Open a finished store.

        Args:
            folder: Written by `cache_activations`.
            models: Which models to read, in which order; None takes all in the order they were cached.

        Raises:
            ArtifactError: The folder is missing, unfinished, or another stage's.
            StoreError: Parts of it do not belong together, or a model is not in it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest["stage"] != "cache":
            raise ArtifactError(f"{folder} is a '{manifest['stage']}' stage, no activation store; give another folder.")
        stream = read_tokens(folder)
        names = list(manifest["results"]["models"]) if models is None else list(models)
        indices = [_read_index(folder, name, manifest, stream) for name in names]
        config = manifest["config"]
        return cls(folder, stream, indices, sites=config["sites"], dtype=config["dtype"], manifest=manifest)

    def __repr__(self) -> str:
        sites = ", ".join(str(site) for site in self.sites)
        return f"ActivationStore({str(self.folder)!r}: {self.n_rows:,} rows of {', '.join(self.models)} at {sites})"

    @property
    def tokens(self) -> TokenRows:
        """Token id, sample, position, is_response and held_out of every row."""
        return self.stream.rows

    @property
    def stream_hash(self) -> str:
        """sha256 of the token stream that every model read."""
        return self.stream.hash

    @property
    def tokenizer_fingerprint(self) -> str:
        """sha256 of the tokenizer that made the stream."""
        return self.stream.tokenizer_fingerprint

    @property
    def widths(self) -> dict[str, int]:
        """Model name to width."""
        return {name: model.d_model for name, model in self._models.items()}

    @property
    def d_model(self) -> int:
        """The width that all models share; `StoreError` where they differ (see `widths`)."""
        width, *others = set(self.widths.values())
        if others:
            raise StoreError(f"The models of {self.folder} have different widths ({self.widths}); use .widths.")
        return width

    @property
    def fingerprints(self) -> dict[str, str]:
        """Model name to sha256 of the weights it was cached from."""
        return {name: model.fingerprint for name, model in self._models.items()}

    @property
    def n_samples(self) -> int:
        """Number of sequences."""
        return len(self.stream.sequences)

    def sequence(self, sample: int) -> StoredSequence:
        """Sequence number ``sample`` as the models read it."""
        if not 0 <= sample < self.n_samples:
            raise StoreError(f"Sequence {sample} does not exist; {self.folder} has {self.n_samples}.")
        stored = self.stream.sequences[sample]
        first, last = (int(row) for row in self.stream.row_start[sample : sample + 2])
        kept = np.zeros(len(stored.ids), dtype=bool)
        kept[self.tokens.position[first:last]] = True
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
        """Sequences that are kept from training."""
        return np.unique(self.tokens.sample[self.tokens.held_out]).tolist()

    def in_split(self, split: Split) -> Bool[np.ndarray, " row"]:
        """Which rows belong to ``train``, ``held_out`` or ``all``."""
        held_out = self.tokens.held_out
        return {"train": ~held_out, "held_out": held_out, "all": np.ones_like(held_out)}[split]

    def resolve_site(self, site: Site | str | None) -> Site:
        """The site asked for, or the only one there is.

        Raises:
            SiteError: The store does not hold it, or holds several and none is named.
        """
        names = ", ".join(str(item) for item in self.sites)
        if site is None:
            if len(self.sites) != 1:
                raise SiteError(f"{self.folder} holds several sites ({names}); name one.")
            return self.sites[0]
        found = Site.parse(site) if isinstance(site, str) else site
        if found not in self.sites:
            raise SiteError(f"{self.folder} holds {names}, not {found}; cache that site, or take one of these.")
        return found

    def rows(self, start: int, stop: int, site: Site | str | None = None) -> Float[Tensor, "row *model_and_d_model"]:
        """Consecutive rows as float32.

        Returns:
            ``[row model d_model]``; models of different widths stand side by side, ``[row d_all]``.
        """
        return self.shaped(self.to_float(self.stored_bytes(start, stop, site)))

    def rows_of(
        self, model: str, start: int, stop: int, site: Site | str | None = None
    ) -> Float[Tensor, "row d_model"]:
        """Consecutive rows of one model, as float32."""
        return from_stored(self.stored_rows_of(model, start, stop, site), self.dtype).float()

    def batches(
        self,
        batch_size: int,
        seed: int = 0,
        *,
        site: Site | str | None = None,
        split: Split = "train",
        epochs: int | None = 1,
        block_rows: int = 512,
        pool_rows: int = 65536,
    ) -> ShuffledBatches:
        """Shuffled batches of all models, float32, with a position that can be saved.

        Args:
            batch_size: Rows of a batch; the last of all may be smaller.
            seed: Of the shuffle; epochs differ.
            site: Where; the only site when None.
            split: ``train``, ``held_out`` or ``all``.
            epochs: How often every row is served; None goes on for ever.
            block_rows: Consecutive rows that are read together.
            pool_rows: Rows that are mixed with each other in memory.
        """
        return ShuffledBatches(
            self,
            batch_size,
            seed,
            site=self.resolve_site(site),
            split=split,
            epochs=epochs,
            block_rows=block_rows,
            pool_rows=pool_rows,
        )

    def scale(self, site: Site | str | None = None) -> Float[Tensor, " model"]:
        """Per model, the mean L2 norm of its training rows over √d_model (the crosscoder's s_m)."""
        name = str(self.resolve_site(site))
        scales = []
        for model in self._models.values():
            total = sum(shard.norm_sum[name] for shard in model.shards)
            n_rows = sum(shard.n_norms for shard in model.shards)
            scales.append(total / max(n_rows, 1) / model.d_model**0.5)
        return torch.tensor(scales, dtype=torch.float32)

    def check_family(self, family: ModelFamily) -> None:
        """Raise `StoreError` when a model or the tokenizer is not what was cached; both fingerprints are shown."""
        if family.tokenizer_fingerprint != self.tokenizer_fingerprint:
            raise StoreError(
                f"{self.folder} was made with another tokenizer ({self.tokenizer_fingerprint} there, "
                f"{family.tokenizer_fingerprint} now); cache again, or give the models it was made from."
            )
        for name, fingerprint in self.fingerprints.items():
            if name in family and family[name].fingerprint != fingerprint:
                raise StoreError(
                    f"Model {name} is not the one that {self.folder} was made from ({fingerprint} there, "
                    f"{family[name].fingerprint} now); cache again, or give that model."
                )

    def verify(self) -> list[Problem]:
        """Hash every file and compare; returns what is wrong, nothing when all is well."""
        return verify_store(self.folder)

    def to_float(self, stored: np.ndarray) -> Float[Tensor, "row d_all"]:
        """Numbers as they lie on disk, as float32."""
        return from_stored(stored, self.dtype).float()

    def stored_bytes(self, start: int, stop: int, site: Site | str | None = None) -> np.ndarray:
        """Consecutive rows as they lie on disk (bfloat16 as uint16), models side by side, ``[row d_all]``."""
        self._require_rows(start, stop)
        out = np.empty((stop - start, self.d_all), dtype=STORED_AS[self.dtype])
        self.read_into(out, start, self.resolve_site(site))
        return out

    def read_into(self, out: np.ndarray, start: int, site: Site) -> None:
        """Fill ``out`` (``[row d_all]``) with the rows from ``start`` on, as they lie on disk."""
        column = 0
        for name, width in self.widths.items():
            self._read_into(out[:, column : column + width], name, start, site)
            column += width

    @cached_property
    def d_all(self) -> int:
        """Widths of all models together."""
        return sum(self.widths.values())

    def shaped(self, flat: Float[Tensor, "row d_all"]) -> Float[Tensor, "row *model_and_d_model"]:
        """Models side by side to ``[row model d_model]``, where they have one width."""
        if len(set(self.widths.values())) == 1:
            return rearrange(flat, "row (model d_model) -> row model d_model", model=len(self.models))
        return flat

    def stored_rows_of(self, model: str, start: int, stop: int, site: Site | str | None = None) -> np.ndarray:
        """Consecutive rows of one model as they lie on disk (bfloat16 as uint16), ``[row d_model]``."""
        if model not in self._models:
            raise StoreError(f"{self.folder} holds {', '.join(self.models)}, not '{model}'; cache that model too.")
        self._require_rows(start, stop)
        out = np.empty((stop - start, self._models[model].d_model), dtype=STORED_AS[self.dtype])
        self._read_into(out, model, start, self.resolve_site(site))
        return out

    def _require_rows(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_rows:
            raise StoreError(f"Rows {start} to {stop} do not exist; {self.folder} has {self.n_rows}.")

    def _read_into(self, out: np.ndarray, model: str, start: int, site: Site) -> None:
        """Copy consecutive rows, over shard borders, without going through h5py."""
        done = 0
        while done < len(out):
            row = start + done
            index = int(np.searchsorted(self._starts, row, side="right")) - 1
            shard = self.stream.shards[index]
            n_rows = min(len(out) - done, shard.rows.stop - row)
            mapped = self._mapped(model, index, str(site))
            offset = row - shard.rows.start
            out[done : done + n_rows] = mapped[offset : offset + n_rows]
            done += n_rows

    def _mapped(self, model: str, index: int, site: str) -> np.ndarray:
        key = (model, index, site)
        with self._lock:
            if key in self._maps:
                self._maps.move_to_end(key)
                return self._maps[key]
            mapped = self._map(model, index, site)
            self._maps[key] = mapped
            if len(self._maps) > _MAX_MAPS:
                self._maps.popitem(last=False)
            return mapped

    def _map(self, model: str, index: int, site: str) -> np.ndarray:
        """The dataset's bytes through its offset in the file; checks that they are what they should be."""
        record, shard = self._models[model].shards[index], self.stream.shards[index]
        path = self.folder / model / record.file
        width = self._models[model].d_model
        try:
            with h5py.File(path, "r") as file:
                dataset: Any = file[site]
                attributes = dict(file.attrs)
                offset, shape, stored = dataset.id.get_offset(), dataset.shape, dataset.dtype.str
                dtype = dataset.attrs["dtype"]
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise StoreError(f"{path} is missing or damaged ({type(error).__name__}); make the store again.") from None
        whole = (len(shard.rows), width)
        expected = (self.stream_hash, model, shard.rows.start, whole, self.dtype, STORED_AS[self.dtype])
        found = (attributes.get("stream"), attributes.get("model"), attributes.get("start"), shape, dtype, stored)
        if found != expected or offset is None:
            raise StoreError(f"{path} does not belong to this store ({found} there, {expected} expected); verify it.")
        return np.memmap(path, dtype=stored, mode="r", offset=offset, shape=shape)


def _read_index(folder: Path, name: str, manifest: dict[str, Any], stream: TokenStream) -> ModelIndex:
    if name not in manifest["models"]:
        names = ", ".join(manifest["models"])
        raise StoreError(f"{folder} holds {names}, not '{name}'; cache that model too.")
    path = folder / name / INDEX
    index = read_json(path)
    try:
        shards = tuple(ShardRecord(**record) for record in index["shards"])
        model = ModelIndex(name, index["fingerprint"], index["d_model"], shards)
        pairs = [("stream", index["stream"], stream.hash), ("model", model.fingerprint, manifest["models"][name])]
    except (KeyError, TypeError):
        raise StoreError(f"{path} is damaged; make the store again with --force.") from None
    for what, found, expected in pairs:
        if found != expected:
            raise StoreError(f"{path} is of another {what} ({found} there, {expected} expected); make the store again.")
    if [(s.start, s.n_rows) for s in shards] != [(s.rows.start, len(s.rows)) for s in stream.shards]:
        raise StoreError(f"{path} lists other rows than the token stream has; make the store again with --force.")
    return model
