"""Settings of ``mechprobe train-sae`` and of the held-out measurements of a crosscoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from mechprobe.cache.config import StoreSubset
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.row_source import RowSource
from mechprobe.config import FrozenConfig
from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import read_manifest
from mechprobe.types import ReadoutMode
from sae_training import CrosscoderConfig, SaeTrainingError, TrainConfig

QualityType = TypeVar("QualityType", bound="QualityConfig")

RING = "ring"
"""Folder of the ring inside the folder of the training stage."""


class TrainSaeConfig(FrozenConfig):
    """How to train a crosscoder over the models of a store. None takes the library's default or the preset's value.

    Attributes:
        preset: ``paper`` takes every setting that is not given here from arXiv 2604.25011: L1 penalty, λ = 2 warmed up over
            5 % of training, batch 1,024, learning rate 1e-4, 32,768 features, 400M tokens.
        site: The site to read; None takes the store's only site.
        sites: Several sites to read into one dictionary, in place of ``site``. Later stages need a dictionary of one site.
        models: Models of the store, in the order wanted; empty takes all.
        variant: ``batchtopk``, ``jumprelu``, ``l1``, ``matryoshka`` or ``topk``.
        d_sae: Number of features.
        k: Active features per token.
        n_tokens: Tokens to train on. A store with fewer is read several times.
        batch_size: Tokens per step.
        lr: Peak learning rate.
        seed: Seed of the initial weights and of the order of rows.
        pool_rows: Rows that are shuffled together in memory.
        mode: ``cache`` reads a store. ``stream`` runs the models during training and writes only the rows it keeps. ``ring``
            writes ahead into a folder of bounded size. All give the same weights for the same order of rows.
        order: ``blocks`` mixes rows of all shards and needs a whole store. ``shards`` shuffles within windows of whole shards
            and estimates the scale on the first ones. None takes ``blocks`` in mode ``cache`` and ``shards`` otherwise.
        scale_rows: Training rows on which the scale is estimated in the order ``shards``.
        kept_rows: Training rows that modes ``stream`` and ``ring`` keep on disk for held-out metrics and later stages, and the
            largest number of held-out rows they keep.
        ring_gb: Largest size of the ring, in GB (1e9 bytes).
        all_in_memory: Keep all models loaded in modes ``stream`` and ``ring``; otherwise each window loads one after another.
        crosscoder: Further settings of `sae_training.CrosscoderConfig`.
        training: Further settings of `sae_training.TrainConfig`.
    """

    preset: Literal["default", "paper"] = "default"
    site: str | None = None
    sites: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    variant: Literal["batchtopk", "jumprelu", "l1", "matryoshka", "topk"] | None = None
    d_sae: int | None = Field(default=None, ge=1)
    k: int | None = Field(default=None, ge=1)
    n_tokens: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    pool_rows: int = Field(default=65536, ge=1)
    mode: Literal["cache", "stream", "ring"] = "cache"
    order: Literal["blocks", "shards"] | None = None
    scale_rows: int = Field(default=65536, ge=1)
    kept_rows: int = Field(default=131072, ge=1)
    ring_gb: float | None = Field(default=None, gt=0)
    all_in_memory: bool = True
    crosscoder: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "TrainSaeConfig":
        if self.preset == "paper" and self.variant not in (None, "l1"):
            raise ValueError(f"preset 'paper' is the L1 crosscoder, but variant is {self.variant!r}; give one of them")
        if self.site is not None and self.sites:
            raise ValueError(f"site = {self.site!r} and sites = {list(self.sites)} are both given; give one of them")
        if self.mode != "cache" and self.order == "blocks":
            raise ValueError(f"order 'blocks' needs a whole store; mode '{self.mode}' takes order 'shards'")
        if (self.mode == "ring") != (self.ring_gb is not None):
            raise ValueError("mode 'ring' and ring_gb need each other; give both or none")
        if self.mode != "cache" and len(self.sites) > 1:
            raise ValueError(f"mode '{self.mode}' runs the models for one site; several sites need mode 'cache'")
        return self

    @property
    def kept(self) -> StoreSubset | None:
        """The rows that are kept on disk; None where the whole store is."""
        return None if self.mode == "cache" else StoreSubset(rows=self.kept_rows, scale_rows=self.scale_rows)

    def source(self, cache: Path | str, family: Callable[[], ModelFamily], out: Path | str) -> RowSource:
        """Open the activations to train on.

        Args:
            cache: The store: whole in mode ``cache``, the kept rows in the others.
            family: Loads the models in modes ``stream`` and ``ring``.
            out: Folder of the training stage, which will contain the ring.

        Raises:
            ArtifactError: ``cache`` is missing, unfinished, or was made for another mode.
            StoreError: A model differs from the one that the store was made from, or the ring is too small.
        """
        from mechprobe.cache.harvest.live import LiveActivations

        models = self.models or None
        if self.mode == "cache":
            store = ActivationStore.open(cache, models, order=self.order or "blocks", scale_rows=self.scale_rows)
            if store.subset is not None:
                kept = (
                    f"{store.n_rows:,} of {store.manifest['counts']['whole_rows']:,} rows, for mode 'stream' or 'ring'"
                )
                raise ArtifactError(f"{cache} keeps {kept}; train in that mode, or give another --cache.")
            return store
        ring = None if self.ring_gb is None else (Path(out) / RING, self.ring_gb)
        return LiveActivations.open(cache, family(), models, all_in_memory=self.all_in_memory, ring=ring)

    def resolve(self, store: RowSource) -> tuple[CrosscoderConfig, TrainConfig]:
        """The library's two configurations for the models of a store.

        Raises:
            ConfigError: A setting is unknown or contradicts another.
        """
        widths = tuple(store.widths.values())
        shape: dict[str, Any] = {"n_models": len(widths), "model_names": store.models, "seed": self.seed}
        if self.sites:
            shape["sites"] = tuple(str(store.resolve_site(site)) for site in self.sites)
        shape["d_model"] = widths[0] if len(set(widths)) == 1 else widths
        shape |= _given(variant=self.variant, d_sae=self.d_sae, k=self.k)
        schedule = _given(n_tokens=self.n_tokens, batch_size=self.batch_size, lr=self.lr)
        paper = self.preset == "paper"
        if not paper:
            shape = {"d_sae": 16 * max(widths), **shape}
            schedule = {"n_tokens": 4 * int(store.in_split("train").sum()), **schedule}
        training = {"seed": self.seed, **self.training}
        try:
            crosscoder = (CrosscoderConfig.paper if paper else CrosscoderConfig)(**shape, **self.crosscoder)
            return crosscoder, (TrainConfig.paper if paper else TrainConfig)(**schedule, **training)
        except SaeTrainingError as error:
            raise ConfigError(f"train-sae: {error}") from None
        except TypeError as error:
            raise ConfigError(f"train-sae: a setting is given twice ({error}); give it once.") from None


class QualityGate(FrozenConfig):
    """What a crosscoder must reach on held-out tokens before its features are trusted."""

    min_fve: float = Field(default=0.90, le=1)
    """Smallest fraction of variance explained (pooled, about the mean) of every model under its own read-out."""
    min_ce_recovered: float = Field(default=0.80, le=1)
    """Smallest share of cross-entropy recovered in every model; not tested without models."""
    max_dead_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of features that are never active under the joint read-out. The default is our choice: beyond it, most of
    the dictionary is unused."""


class QualityConfig(FrozenConfig):
    """How a crosscoder is measured on held-out rows; `FeaturesConfig` adds the settings of the feature table."""

    site: str | None = None
    """Site of the store, for example ``resid_post.2``; None takes the site that the crosscoder was trained at."""
    readout: ReadoutMode = "swap"
    """How one model's features are read through the joint encoder; see `mechprobe.dictionary.readout`."""
    near: tuple[str, ...] | None = None
    """Models similar enough to share encoder slots under ``swap``; None means all models."""
    batch_rows: int = Field(default=2048, ge=1)
    """Rows encoded at a time."""
    gate: QualityGate = QualityGate()
    ce_samples: int = Field(default=256, ge=1)
    """Held-out samples on which the next-token loss is measured with the reconstruction spliced in."""
    ce_batch: int = Field(default=32, ge=1)
    """Samples per forward pass of that measurement."""

    def with_site(self: QualityType, crosscoder: Path | str, store: ActivationStore) -> QualityType:
        """The settings with the site filled in: the one named, else the one that the crosscoder was trained at.

        Raises:
            SiteError: The store does not hold the site.
        """
        trained_at = read_manifest(crosscoder)["config"].get("site")
        return self.replace(site=str(store.resolve_site(self.site or trained_at)))


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
