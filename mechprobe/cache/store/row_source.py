"""Activations as training consumes them: the base of stores on disk and of models that run meanwhile, and batches of sites."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.batches import FillRows, Order, ServingSession, ShuffledBatches, Split
from mechprobe.cache.store.dtypes import concat_models, row_width
from mechprobe.cache.store.norms import SiteNorms, norm_limit
from mechprobe.cache.store.shards import ShardRecord
from mechprobe.data.stream import TokenRows, TokenStream
from mechprobe.errors import SiteError, StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site
from sae_training.weights import FAR


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """Fingerprint, width, shards and, by site, norms of one model. A model that runs during training has no shards.

    A store of an earlier release has no norms.
    """

    name: str
    fingerprint: str
    d_model: int
    shards: tuple[ShardRecord, ...] = ()
    norms: Mapping[str, SiteNorms] = field(default_factory=dict)


class RowSource:
    """Activations of several models on one token stream: row ``i`` of every model is the same token.

    Subclasses implement `kept` and `window`.

    Attributes:
        folder: Folder of the store that later stages read.
        stream: The tokens of every row.
        models: Names in the order of the model axis.
        sites: Sites, shallow to deep.
        dtype: Dtype of the stored rows.
        widths: Model name to d_model.
        d_stored: Number of entries in a stored row of all models (`mechprobe.cache.store.dtypes`).
        order: Order in which rows are served.
        scale_rows: Number of training rows that give the scale in the order ``shards``.
        mode: ``cache``, ``stream`` or ``ring``.
        n_rows: Number of rows.
        settings: Settings of the stage that wrote the store.
        dropped: Rows that the rule by norm drops. They are in no split.
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
        self.folder, self.stream, self.n_rows = folder, stream, stream.n_rows
        self._models = {model.name: model for model in models}
        self.models, self.sites = tuple(self._models), tuple(sites)
        self.dtype: StoreDtype = dtype
        self.widths = {model.name: model.d_model for model in models}
        self.d_stored = sum(row_width(dtype, width) for width in self.widths.values())
        self.order: Order = order
        self.scale_rows = scale_rows
        self.settings: Mapping[str, Any] = {}
        self.dropped: Bool[np.ndarray, " row"] = np.zeros(self.n_rows, dtype=bool)

    @property
    def kept(self) -> "RowSource":
        """The rows on disk, which held-out metrics are computed from."""
        raise NotImplementedError

    @property
    def tokens(self) -> TokenRows:
        """Token id, sample, position, is_response and held_out of every row."""
        return self.stream.rows

    @property
    def stream_hash(self) -> str:
        """sha256 of the token stream."""
        return self.stream.hash

    @property
    def tokenizer_fingerprint(self) -> str:
        """sha256 of the tokenizer that made the stream."""
        return self.stream.tokenizer_fingerprint

    @property
    def d_model(self) -> int:
        """The width that all models share; `StoreError` where they differ (see `widths`)."""
        width, *others = set(self.widths.values())
        if others:
            raise StoreError(f"The models of {self.folder} have different widths ({self.widths}); use .widths.")
        return width

    @property
    def d_all(self) -> int:
        """Sum of the widths of all models."""
        return sum(self.widths.values())

    @property
    def fingerprints(self) -> dict[str, str]:
        """Model name to the sha256 of its weights."""
        return {name: model.fingerprint for name, model in self._models.items()}

    def in_split(self, split: Split) -> Bool[np.ndarray, " row"]:
        """Mask of the rows in a split."""
        held_out = self.tokens.held_out
        return {"train": ~held_out, "held_out": held_out, "all": np.ones_like(held_out)}[split] & ~self.dropped

    def resolve_site(self, site: Site | str | None) -> Site:
        """The site asked for, or the only site.

        Raises:
            SiteError: The site does not exist here, or there are several and none is named.
        """
        if site is None and len(self.sites) == 1:
            return self.sites[0]
        names = ", ".join(str(item) for item in self.sites)
        if site is None:
            raise SiteError(f"{self.folder} holds several sites ({names}); name one of them.")
        found = Site.parse(site) if isinstance(site, str) else site
        if found not in self.sites:
            raise SiteError(f"{self.folder} holds {names}, not {found}; cache that site, or name one of these.")
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
        """Shuffled float32 batches of all models, with a position that can be saved.

        Args:
            batch_size: Rows in a batch; the last batch may be smaller.
            seed: Seed of the shuffle. Each epoch is shuffled differently.
            site: Site to serve; the only site when None.
            split: ``train``, ``held_out`` or ``all``.
            epochs: Number of epochs; None serves batches without end.
            block_rows: Consecutive rows that are read together. In the order ``shards`` a block is a whole shard.
            pool_rows: Number of rows that are mixed in memory.
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

        Rows that are dropped, or far in this model (`mechprobe.cache.store.norms`), do not count.

        The mean is over all training rows in the order ``blocks``, and over the leading shards with `scale_rows` of
        them in the order ``shards``. Sequences are in random order, so the leading shards are a random sample.
        """
        name, limit = str(self.resolve_site(site)), self.scale_rows if self.order == "shards" else None
        scales = []
        for model in self._models.values():
            total, n_rows = 0.0, 0
            norms = model.norms.get(name)
            ordinary = norms.ordinary if norms is not None else ()
            for norm_sum, n_norms in ordinary or [(shard.norm_sum[name], shard.n_norms) for shard in model.shards]:
                if limit is not None and n_rows >= limit:
                    break
                total, n_rows = total + norm_sum, n_rows + n_norms
            scales.append(total / max(n_rows, 1) / model.d_model**0.5)
        return torch.tensor(scales, dtype=torch.float32)

    def far_norms(self, sites: Sequence[Site]) -> list[float] | None:
        """Norm of each source, model by model, above which a row is far; None where the store has no norms."""
        return self._norm_limits(sites, FAR)

    def token_rule(self, sites: Sequence[Site]) -> dict[str, Any]:
        """``drop_first_positions`` and ``norm_limits`` of a crosscoder that is trained on these rows."""
        above = self.settings.get("drop_norm_above")
        limits = None if above is None else self._norm_limits(sites, above)
        return {
            "drop_first_positions": self.settings.get("drop_first_positions", 0),
            "norm_limits": tuple(limits or ()),
        }

    def _norm_limits(self, sites: Sequence[Site], times_median: float) -> list[float] | None:
        norms = [model.norms.get(str(site)) for model in self._models.values() for site in sites]
        return [norm_limit(found, times_median) for found in norms if found is not None] if None not in norms else None

    def check_family(self, family: ModelFamily) -> None:
        """Raise `StoreError` with both fingerprints when a model or the tokenizer differs from the cached one."""
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

    def to_float(self, stored: Tensor) -> Float[Tensor, "row d_all"]:
        """Stored rows as float32 on the same device, models concatenated."""
        return concat_models(stored, tuple(self.widths.values()), self.dtype)

    def shaped(self, flat: Float[Tensor, "row d_all"]) -> Float[Tensor, "row *model_and_d_model"]:
        """Concatenated models to ``[row model d_model]``; unchanged where their widths differ."""
        if len(set(self.widths.values())) == 1:
            return rearrange(flat, "row (model d_model) -> row model d_model", model=len(self.models))
        return flat

    def serving_settings(self) -> Mapping[str, str | int]:
        """Settings that change the numbers that training receives, other than those of the batches."""
        return {"order": self.order} | ({"scale_rows": self.scale_rows} if self.order == "shards" else {})

    @contextmanager
    def serving(self, session: ServingSession) -> Iterator[None]:
        """Serve the batches of a session inside; a source that works ahead overrides this method."""
        yield
        session.ended.set()

    def window(
        self, session: ServingSession, first_block: int, shards: Sequence[int]
    ) -> AbstractContextManager[FillRows]:
        """Fill the blocks of one pool, in order: ``first_block`` and the following ones, one for each of ``shards``."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what is not needed after training."""


class SiteBatches:
    """Shuffled batches ``[batch source d_model]``, or ``[batch d_all]`` where widths differ; sources go model by model.

    The order of batches depends only on the seed and the position, so one stream per site serves the same rows. Each
    stream has its own pool. With one site the batches are those of the source. Leaving the context ends background work.
    """

    def __init__(
        self,
        source: RowSource,
        sites: Sequence[Site],
        batch_size: int,
        seed: int,
        *,
        split: Split = "train",
        epochs: int | None = None,
        pool_rows: int = 65536,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(sites) > 1 and source.mode != "cache":
            raise StoreError(f"Mode '{source.mode}' runs the models for one site; several sites need a whole store.")
        self._widths = list(source.widths.values())
        self._streams: list[ShuffledBatches] = [
            source.batches(batch_size, seed, site=site, split=split, epochs=epochs, pool_rows=pool_rows).to(device)
            for site in sites
        ]
        self.n_rows = self._streams[0].n_rows

    def __enter__(self) -> "SiteBatches":
        return self

    def __exit__(self, *raised: object) -> None:
        for stream in self._streams:
            stream.__exit__(*raised)

    def __iter__(self) -> Iterator[Tensor]:
        for parts in zip(*self._streams, strict=True):
            yield parts[0] if len(parts) == 1 else concat_sites(parts, self._widths)

    def state_dict(self) -> dict[str, Any]:
        """The position of every site's stream; with one site, the position of its stream."""
        states = [stream.state_dict() for stream in self._streams]
        return states[0] if len(states) == 1 else {"sites": states}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from a position."""
        states = state.get("sites", [state])
        if len(states) != len(self._streams):
            raise StoreError(
                f"The saved position covers {len(states)} sites, these batches cover {len(self._streams)}; "
                "resume with the same settings."
            )
        for stream, part in zip(self._streams, states, strict=True):
            stream.load_state_dict(part)


def concat_sites(sites: Sequence[Tensor], widths: Sequence[int]) -> Float[Tensor, "batch *source_and_d_model"]:
    """Combine one batch per site into one batch of all sources, ordered by model and then by site."""
    if sites[0].ndim == 3:
        return torch.stack(list(sites), dim=2).flatten(1, 2)
    by_site = [site.split(list(widths), dim=1) for site in sites]
    return torch.cat([part for model in zip(*by_site, strict=True) for part in model], dim=1)
