"""What training needs of activations, wherever they come from: a store on disk, or the models themselves."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.batches import Order, ShuffledBatches, Split
from mechprobe.cache.store.dtypes import row_width, side_by_side
from mechprobe.cache.store.shards import ShardRecord
from mechprobe.data.stream import TokenRows, TokenStream
from mechprobe.errors import SiteError, StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site

if TYPE_CHECKING:
    from mechprobe.cache.store.activation_store import ActivationStore

SCALE_ROWS = 65536
"""Training rows that the scale is taken of where rows come in whole shards."""

ReadRows = Callable[[np.ndarray, int], None]
"""Fills rows in memory ``[row d_stored]`` with the rows of all models from a given row on."""


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """What is known of one model's activations; a model that is run on the fly has no shards."""

    name: str
    fingerprint: str
    d_model: int
    shards: tuple[ShardRecord, ...] = ()


@dataclass(frozen=True)
class Serving:
    """What batches will ask for.

    Attributes:
        site: Where.
        shard_at: The shard that the n-th read over all epochs is of; None behind the last.
        start: Number of the first read.
        ended: Set when no more batches are wanted.
    """

    site: Site
    shard_at: Callable[[int], int | None]
    start: int
    ended: threading.Event = field(default_factory=threading.Event)


class RowSource:
    """Activations of several models on one token stream, served in shuffled batches.

    Attributes:
        folder: The store that later stages read: its own, or what a run without a whole store keeps.
        stream: The tokens of every row.
        models: Names, in the order of the model axis.
        sites: Sites it holds, shallow to deep.
        dtype: Of the stored numbers.
        order: ``blocks`` (rows of all shards are mixed) or ``shards`` (a window is made of whole shards, and the
            scale is taken of the leading ones: the order that needs no whole store).
        scale_rows: Training rows that the scale is taken of where the order is ``shards``.
        mode: ``cache``, ``stream`` or ``ring``.
        n_rows: Number of tokens.
    """

    mode: Literal["cache", "stream", "ring"] = "cache"

    def __init__(
        self,
        folder: Path,
        stream: TokenStream,
        models: Sequence[ModelIndex],
        *,
        sites: Sequence[Site],
        dtype: StoreDtype,
        order: Order,
        scale_rows: int,
    ) -> None:
        self.folder = folder
        self.stream = stream
        self._models = {model.name: model for model in models}
        self.models = tuple(self._models)
        self.sites = tuple(sites)
        self.dtype: StoreDtype = dtype
        self.order: Order = order
        self.scale_rows = scale_rows
        self.n_rows = stream.n_rows

    @property
    def kept(self) -> "ActivationStore":
        """The store on disk: what held-out metrics and later stages are made from."""
        raise NotImplementedError

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

    @cached_property
    def d_all(self) -> int:
        """Widths of all models together."""
        return sum(self.widths.values())

    @cached_property
    def d_stored(self) -> int:
        """Entries of a row of all models in memory (`numbers`)."""
        return sum(row_width(self.dtype, width) for width in self.widths.values())

    @property
    def fingerprints(self) -> dict[str, str]:
        """Model name to sha256 of the weights that its activations are of."""
        return {name: model.fingerprint for name, model in self._models.items()}

    def in_split(self, split: Split) -> Bool[np.ndarray, " row"]:
        """Which rows belong to ``train``, ``held_out`` or ``all``."""
        held_out = self.tokens.held_out
        return {"train": ~held_out, "held_out": held_out, "all": np.ones_like(held_out)}[split]

    def resolve_site(self, site: Site | str | None) -> Site:
        """The site asked for, or the only one there is.

        Raises:
            SiteError: It is not there, or there are several and none is named.
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
            block_rows: Consecutive rows that are read together; whole shards are where ``order`` is ``shards``.
            pool_rows: Rows that are mixed with each other in memory.
        """
        return ShuffledBatches(
            self,
            batch_size,
            seed,
            site=self.resolve_site(site),
            split=split,
            epochs=epochs,
            block_rows=None if self.order == "shards" else block_rows,
            pool_rows=pool_rows,
        )

    def scale(self, site: Site | str | None = None) -> Float[Tensor, " model"]:
        """Per model, the mean L2 norm of training rows over √d_model (the crosscoder's s_m).

        Of all training rows where the order is ``blocks``, of the leading shards with `scale_rows` of them where it is
        ``shards`` (sequences lie in random order, so these are a sample of all).
        """
        name, limit = str(self.resolve_site(site)), self.scale_rows if self.order == "shards" else None
        scales = []
        for model in self.kept._models.values():
            total, n_rows = 0.0, 0
            for shard in model.shards:
                if limit is not None and n_rows >= limit:
                    break
                total, n_rows = total + shard.norm_sum[name], n_rows + shard.n_norms
            scales.append(total / max(n_rows, 1) / model.d_model**0.5)
        return torch.tensor(scales, dtype=torch.float32)

    def check_family(self, family: ModelFamily) -> None:
        """Raise `StoreError` when a model or the tokenizer is not what was read; both fingerprints are shown."""
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

    def to_float(self, stored: np.ndarray) -> Float[Tensor, "row d_all"]:
        """Rows in memory, models side by side, as float32."""
        return side_by_side(stored, tuple(self.widths.values()), self.dtype)

    def shaped(self, flat: Float[Tensor, "row d_all"]) -> Float[Tensor, "row *model_and_d_model"]:
        """Models side by side to ``[row model d_model]``, where they have one width."""
        if len(set(self.widths.values())) == 1:
            return rearrange(flat, "row (model d_model) -> row model d_model", model=len(self.models))
        return flat

    def serving_settings(self) -> Mapping[str, str | int]:
        """The settings that change which numbers training sees, beside those of the batches."""
        return {"order": self.order} | ({"scale_rows": self.scale_rows} if self.order == "shards" else {})

    @contextmanager
    def serving(self, serving: Serving) -> Iterator[None]:
        """Batches are served inside; a source that makes rows ahead does so here."""
        yield
        serving.ended.set()

    @contextmanager
    def window(self, serving: Serving, first: int, shards: Sequence[int]) -> Iterator[ReadRows]:
        """Read the rows of one window; its reads are number ``first`` and following, one a block, of ``shards``."""
        del serving, first, shards
        raise NotImplementedError
        yield

    def close(self) -> None:
        """Drop what is not needed once training is finished."""
