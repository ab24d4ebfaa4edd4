"""Size of a store before anything is written."""

from pathlib import Path

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.prompts import PreparedPrompts, prepare_prompts
from mechprobe.cache.result import CachePlan
from mechprobe.cache.store.disk import free_bytes
from mechprobe.data.sources import PromptInput, as_prompts
from mechprobe.errors import ConfigError
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import require_creatable
from mechprobe.types import Site


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
        raise ConfigError(
            'No site is given; set sites, for example ["resid_post.2"], or use a site that `localize` names.'
        )
    return sites


def plan_of(family: ModelFamily, prepared: PreparedPrompts, out: Path) -> CachePlan:
    """The plan for prepared prompts.

    Raises:
        SiteError: A site does not exist.
    """
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
