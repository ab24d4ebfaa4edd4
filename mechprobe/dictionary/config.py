"""Settings of ``mechprobe train-sae``: the ones worth choosing, made into the library's two configurations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.source import RowSource
from mechprobe.cache.store.store_subset import StoreSubset
from mechprobe.config import FrozenConfig
from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.models.family import ModelFamily
from sae_training import CrosscoderConfig, SaeTrainingError, TrainConfig

RING = "ring"
"""Folder of the ring in the training stage's."""


class TrainSaeConfig(FrozenConfig):
    """A crosscoder over the models of a store; what is None takes the library's default or the preset's value.

    Attributes:
        preset: ``paper`` takes the setting of arXiv 2604.25011 (L1 penalty, λ = 2 warmed up over 5 %, batch 1,024,
            learning rate 1e-4, 32,768 features, 400M tokens) for everything that is not given here.
        site: Where; the store's only site when None.
        sites: Several sites of the store, read into one dictionary; then ``site`` stays None. The stages behind the
            training need a dictionary of one site.
        models: Which models of the store, in which order; none takes all.
        variant: ``batchtopk``, ``jumprelu``, ``l1``, ``matryoshka`` or ``topk``.
        d_sae: Number of features.
        k: Features active per token.
        n_tokens: Tokens to train on; rows are served again from the beginning when the store has fewer.
        batch_size: Tokens a step.
        lr: Peak learning rate.
        seed: Of the weights and of the order of rows.
        pool_rows: Rows mixed with each other in memory.
        mode: ``cache`` reads a store; ``stream`` runs the models while it trains and writes no activations but the kept
            ones; ``ring`` writes them ahead into a folder of bounded size. All give the same weights in the same order.
        order: ``blocks`` mixes rows of all shards and needs a whole store; ``shards`` makes a window of whole shards and
            takes the scale of the leading ones. None takes ``blocks`` for mode ``cache`` and ``shards`` for the others.
        scale_rows: Training rows that the scale is taken of in the order ``shards``.
        kept_rows: Rows kept on disk in modes ``stream`` and ``ring``, and as many held-out ones: what held-out metrics
            and later stages read.
        ring_gb: Most that the ring takes, in GB (1e9 bytes).
        all_in_memory: Keep every model loaded in modes ``stream`` and ``ring``; otherwise one after another is loaded
            for each window.
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
            raise ValueError(f"preset 'paper' is the L1 crosscoder, not {self.variant!r}; give one of them")
        if self.site is not None and self.sites:
            raise ValueError(f"site = {self.site!r} and sites = {list(self.sites)} are both given; give one of them")
        if self.mode != "cache" and self.order == "blocks":
            raise ValueError(f"order 'blocks' needs a whole store; mode '{self.mode}' serves 'shards'")
        if (self.mode == "ring") != (self.ring_gb is not None):
            raise ValueError("mode 'ring' and ring_gb belong together; give both or none")
        if self.mode != "cache" and len(self.sites) > 1:
            raise ValueError(f"mode '{self.mode}' runs the models for one site; several sites need mode 'cache'")
        return self

    @property
    def kept(self) -> StoreSubset | None:
        """What is kept on disk; None where the whole store is."""
        return None if self.mode == "cache" else StoreSubset(rows=self.kept_rows, scale_rows=self.scale_rows)

    def source(self, cache: Path | str, family: Callable[[], ModelFamily], out: Path | str) -> RowSource:
        """The activations that ``mode`` stands for.

        Args:
            cache: The store, whole in mode ``cache`` and the kept part in the others.
            family: Gives the models; called in modes ``stream`` and ``ring``.
            out: Folder of the training stage, in which the ring lies.

        Raises:
            ArtifactError: ``cache`` is missing, unfinished, or of another mode.
            StoreError: A model is not what the store was made from; the ring is too small.
        """
        from mechprobe.cache.harvest.live import LiveActivations

        models = self.models or None
        if self.mode == "cache":
            store = ActivationStore.open(cache, models, order=self.order or "blocks", scale_rows=self.scale_rows)
            if store.manifest["config"].get("kept"):
                whole = store.manifest["counts"]["whole_rows"]
                raise ArtifactError(
                    f"{cache} keeps {store.n_rows:,} of {whole:,} rows, for mode 'stream' or 'ring'; train with that "
                    "mode, or give another --cache."
                )
            return store
        ring = None if self.ring_gb is None else (Path(out) / RING, self.ring_gb)
        return LiveActivations.open(cache, family(), models, all_in_memory=self.all_in_memory, ring=ring)

    def resolve(self, store: RowSource) -> tuple[CrosscoderConfig, TrainConfig]:
        """The library's configurations for the models of ``store``.

        Raises:
            ConfigError: A setting is unknown or contradicts another.
        """
        widths = tuple(store.widths.values())
        shape: dict[str, Any] = {"n_models": len(widths), "model_names": store.models, "seed": self.seed}
        if self.sites:
            shape["sites"] = tuple(str(store.resolve_site(site)) for site in self.sites)
        shape["d_model"] = widths[0] if len(set(widths)) == 1 else widths
        chosen: dict[str, Any] = {"variant": self.variant, "d_sae": self.d_sae, "k": self.k}
        schedule: dict[str, Any] = {"n_tokens": self.n_tokens, "batch_size": self.batch_size, "lr": self.lr}
        kept = {name: value for name, value in chosen.items() if value is not None}
        timed = {name: value for name, value in schedule.items() if value is not None}
        paper = self.preset == "paper"
        if not paper:
            kept = {"d_sae": 16 * max(widths), **kept}
            timed = {"n_tokens": 4 * int(store.in_split("train").sum()), **timed}
        try:
            crosscoder = (CrosscoderConfig.paper if paper else CrosscoderConfig)(**shape, **kept, **self.crosscoder)
            return crosscoder, (TrainConfig.paper if paper else TrainConfig)(
                **timed, **{"seed": self.seed, **self.training}
            )
        except SaeTrainingError as error:
            raise ConfigError(f"train-sae: {error}") from None
        except TypeError as error:
            raise ConfigError(f"train-sae: a setting is given twice ({error}); give it once.") from None


class QualityGate(FrozenConfig):
    """What a crosscoder must reach on held-out tokens before its features are believed."""

    min_fve: float = Field(default=0.90, le=1)
    """Smallest fraction of variance explained (pooled, about the mean), for every model, with its own read-out."""
    min_ce_recovered: float = Field(default=0.80, le=1)
    """Smallest share of cross-entropy recovered, for every model; passed over where no models were given."""
    max_dead_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of latents that the joint read-out never shows above zero; beyond half, most of the dictionary is idle (ours)."""
