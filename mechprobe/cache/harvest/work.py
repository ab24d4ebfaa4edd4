"""The work of one store: models, prompts and settings, checked before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechprobe.cache.config import CacheConfig, StoreSubset
from mechprobe.cache.harvest.plan import checked_sites, plan_of
from mechprobe.cache.harvest.prompts import PreparedPrompts, prepare_prompts
from mechprobe.data.sources import PromptInput, as_prompts, hash_of
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site


@dataclass(frozen=True)
class CacheWork:
    """The work of one store, a pure function of family, prompts and settings.

    Attributes:
        family: The models.
        prepared: The tokenized prompts.
        sites: Sites, shallow to deep.
        config: The settings.
        out: Folder of the store.
        identity: Everything that the bytes of the store depend on, except the weights.
        kept: How much is kept on disk; None keeps all.
    """

    family: ModelFamily
    prepared: PreparedPrompts
    sites: tuple[Site, ...]
    config: CacheConfig
    out: Path
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
        config = config or CacheConfig()
        if sites is not None:
            config = config.replace(sites=tuple(str(site) for site in sites))
        checked = checked_sites(family, config)
        items = as_prompts(prompts)
        prepared = prepare_prompts(family, items, config)
        if kept is None:
            plan_of(family, prepared, Path(out)).require_space()
        identity = {
            **config.identity(),
            "sites": [str(site) for site in checked],
            "prompts": hash_of(items),
            "tokenizer": family.tokenizer_fingerprint,
            **prepared.identity,
            "model_dtypes": {model.name: model.dtype for model in family},
        }
        if kept is not None:
            identity["kept"] = kept.model_dump(mode="json")
        return cls(family, prepared, tuple(checked), config, Path(out), identity, kept)
