"""The plan of a store: its models, prompts and settings, and its size, checked before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechprobe.cache.config import CacheConfig, StoreSubset
from mechprobe.cache.harvest.prompts import PreparedPrompts, prepare_prompts
from mechprobe.cache.result import CachePlan
from mechprobe.cache.store.disk import free_bytes
from mechprobe.data.sources import PromptInput, as_prompts, hash_of
from mechprobe.errors import ConfigError
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import require_creatable
from mechprobe.types import Site


@dataclass(frozen=True)
class ShardWork:
    """What a process needs to write shards, once the token stream is known.

    Attributes:
        family: The models.
        sites: Sites, shallow to deep.
        config: The settings.
        out: Folder of the store.
    """

    family: ModelFamily
    sites: tuple[Site, ...]
    config: CacheConfig
    out: Path

    @classmethod
    def checked(
        cls, family: ModelFamily, sites: Sequence[Site | str] | None, out: Path | str, config: CacheConfig | None
    ) -> "ShardWork":
        """Check models and sites; raises `SiteError` or `ModelError`."""
        config = config or CacheConfig()
        if sites is not None:
            config = config.replace(sites=tuple(str(site) for site in sites))
        checked = checked_sites(family, config)
        for model in family:
            model.require_residual()
        return cls(family, tuple(checked), config, Path(out))


@dataclass(frozen=True)
class CacheWork(ShardWork):
    """The work of one store, a pure function of family, prompts and settings.

    Attributes:
        prepared: The tokenized prompts.
        identity: Everything that the bytes of the store depend on, except the weights.
        kept: How much is kept on disk; None keeps all.
    """

    prepared: PreparedPrompts
    identity: dict[str, object]
    kept: StoreSubset | None = None

    @classmethod
    def of(
        cls,
        family: ModelFamily,
        prompts: PromptInput,
        sites: Sequence[Site | str] | None,
        out: Path | str,
        config: CacheConfig | None,
        kept: StoreSubset | None = None,
    ) -> "CacheWork":
        """Check everything that can be checked before anything is written.

        Raises:
            InputError, SiteError, ModelError: An argument cannot be used.
            StoreError: The disk is too small.
        """
        if kept is not None and config is not None and config.drop_norm_above is not None:
            raise ConfigError(
                "cache.drop_norm_above needs the norms of all rows, which train_sae.mode 'stream' and 'ring' do not keep; "
                "set cache.drop_first_positions, or train with mode 'cache'."
            )
        shards = ShardWork.checked(family, sites, out, config)
        config, items = shards.config, as_prompts(prompts)
        prepared = prepare_prompts(family, items, config)
        if kept is None:
            plan_of(family, prepared, Path(out)).require_space()
        identity = {
            **config.identity(),
            "sites": [str(site) for site in shards.sites],
            "prompts": hash_of(items),
            "tokenizer": family.tokenizer_fingerprint,
            **prepared.identity,
            **(family.identity if config.responses else family.tokenizer_identity),
            **family.arithmetic,
            "model_dtypes": {model.name: model.dtype for model in family},
        }
        if kept is not None:
            identity["kept"] = kept.model_dump(mode="json")
        return cls(family, shards.sites, config, shards.out, prepared, identity, kept)


def plan_cache(family: ModelFamily, prompts: PromptInput, out: Path | str, config: CacheConfig) -> CachePlan:
    """The size of the store that `cache_activations` would write with the same arguments, for a dry run.

    Raises:
        InputError: The prompts cannot be used.
        SiteError: A site does not exist.
        ArtifactError: The folder cannot be created.
    """
    require_creatable(out)
    return plan_of(family, prepare_prompts(family, as_prompts(prompts), config), Path(out))


def checked_sites(family: ModelFamily, config: CacheConfig) -> list[Site]:
    """The sites of the settings.

    Raises:
        ConfigError: No site is given.
        SiteError: The models have no such site.
    """
    sites = [site.check(family.n_layers) for site in config.parsed_sites()]
    if not sites:
        raise ConfigError('No site is given; set sites, such as ["resid_post.2"], or the site that `localize` names.')
    return sites


def plan_of(family: ModelFamily, prepared: PreparedPrompts, out: Path) -> CachePlan:
    """Plan the store for these prompts: fewest and most rows, which differ where models still write responses, and bytes."""
    limit = prepared.config.max_tokens
    fewest, most = (rows if limit is None else min(rows, limit) for rows in prepared.row_bounds())
    return plan_rows(family, prepared, out, fewest, most)


def plan_rows(family: ModelFamily, prepared: PreparedPrompts, out: Path, fewest: int, most: int) -> CachePlan:
    """The plan for a minimum and a maximum number of rows."""
    return CachePlan(
        n_prompts=len(prepared.prompts),
        n_rows=fewest,
        most_rows=most,
        widths=family.d_model,
        sites=tuple(str(site) for site in checked_sites(family, prepared.config)),
        dtype=prepared.config.dtype,
        free_bytes=free_bytes(out),
        done_bytes=sum(file.stat().st_size for file in out.glob("*/shard_*.h5")) if out.is_dir() else 0,
    )
