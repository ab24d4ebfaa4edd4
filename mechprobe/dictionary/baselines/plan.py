"""The checked plan of the baselines stage: which SAEs are given, how the others are trained, and how all are compared."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.baselines.config import BaselinesConfig
from mechprobe.dictionary.baselines.result import Reconstruction
from mechprobe.dictionary.config import QualityConfig
from mechprobe.errors import ConfigError, StoreError
from mechprobe.stage_folder import read_manifest
from mechprobe.types import Site
from sae_training import (
    Crosscoder,
    ReconstructionSums,
    SaeBaselineConfig,
    SaeTrainingError,
    TrainConfig,
    VarianceSums,
    import_sae,
)

Coder = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""Encodes raw rows of all models, side by side, to ``[batch d_sae]``, and decodes these to one model."""
SAE_FILES = ("cfg.json", "sae_weights.safetensors")
_BATCH_ROWS = 4096


def held_out_rows(store: ActivationStore, site: Site, crosscoder: Crosscoder) -> Iterator[Float[Tensor, "batch d_all"]]:
    """Held-out rows of all models, side by side and raw, on the crosscoder's device."""
    for batch in store.batches(_BATCH_ROWS, 0, site=site, split="held_out", epochs=1):
        yield crosscoder.flatten(batch.to(crosscoder.device))


@torch.no_grad()
def compare(
    batches: Iterable[Tensor], columns: Mapping[str, slice], coders: Mapping[tuple[str, str], Coder]
) -> dict[tuple[str, str], Reconstruction]:
    """Reconstruct the same rows by every dictionary, by (model, label), with sums in float64.

    ``batches`` are raw residuals ``[batch d_all]`` of all models, each in its ``columns``. Raises `StoreError` without rows.
    """
    sums = {key: ReconstructionSums() for key in coders}
    variance: VarianceSums | None = None
    for x in batches:
        # One sum per column, so that the columns of any model can be added up.
        variance = variance or VarianceSums([1] * x.shape[1])
        exact = x.double()
        variance.update(exact)
        for key, (encode, decode) in coders.items():
            feature_acts = encode(x)
            sums[key].update(feature_acts, exact[:, columns[key[0]]] - decode(feature_acts))
    if variance is None or variance.n_tokens == 0:
        raise StoreError("The activation store has no held-out rows; make it again with a larger held-out share.")
    by_column = variance.compute()
    fve = {key: float(found.fve(by_column[columns[key[0]]].sum())) for key, found in sums.items()}
    return {
        key: Reconstruction(fve=fve[key], l0=found.l0, dead_frac=found.dead_frac, n_rows=found.n_tokens)
        for key, found in sums.items()
    }


@dataclass(frozen=True)
class BaselinePlan:
    """What the stage will train and measure.

    Attributes:
        crosscoder: The dictionary.
        store: The activations of its models.
        site: The site of the store.
        training: Configuration of each SAE's training; None where every SAE is given.
        batch_seed: Seed of the order of rows: the crosscoder's.
        pool_rows: Rows that are shuffled together in memory: the crosscoder's.
        given: Folders of SAEs that are not trained, by model.
    """

    crosscoder: Crosscoder
    store: ActivationStore
    site: Site
    training: SaeBaselineConfig | None
    batch_seed: int
    pool_rows: int
    given: dict[str, Path] = field(default_factory=dict)

    @property
    def training_settings(self) -> dict[str, Any] | None:
        """``training`` as JSON."""
        return self.training.model_dump(mode="json") if self.training else None

    @property
    def columns(self) -> dict[str, slice]:
        """The columns of each model in a row of the store."""
        return {name: self.crosscoder.columns(name) for name in self.crosscoder.model_names}


def plan_baselines(
    crosscoder: Path | str,
    cache: Path | str,
    config: BaselinesConfig | None = None,
    *,
    quality: QualityConfig | None = None,
    device: str = "cpu",
) -> BaselinePlan:
    """Check what `mechprobe.dictionary.baselines.stage.measure_baselines` would train and measure.

    Raises:
        ConfigError: An imported crosscoder needs a setting that is not given, or an SAE is given for an unknown model.
        ArtifactError: A folder is not a finished stage.
        StoreError: The store has no held-out rows.
    """
    config = config or BaselinesConfig()
    given = {name: Path(path) for name, path in config.saes.items()}
    settings = read_manifest(crosscoder)["config"]
    dictionary = Crosscoder.load(crosscoder, device)
    dictionary.config.require_activations("mechprobe baselines")
    store = ActivationStore.open(cache, models=dictionary.model_names)
    site = store.resolve_site((quality or QualityConfig()).with_site(crosscoder, store).site)
    names = dictionary.model_names
    for name in given:
        if name not in names:
            known = ", ".join(names)
            raise ConfigError(f"An SAE is given for '{name}', but the crosscoder has {known}; name one of them.")
    if not bool(store.tokens.held_out.any()):
        raise StoreError(f"{store.folder} has no held-out rows; cache again with a larger held-out share.")
    to_train = set(given) != set(names)
    training = _training(dictionary, store, site, settings.get("training"), config) if to_train else None
    batch_seed = int((settings.get("training") or {}).get("seed", config.seed))
    return BaselinePlan(dictionary, store, site, training, batch_seed, int(settings.get("pool_rows", 65536)), given)


def _training(
    crosscoder: Crosscoder, store: ActivationStore, site: Site, trained: Any, config: BaselinesConfig
) -> SaeBaselineConfig:
    """The crosscoder's training settings as those of an SAE, with the changes in ``config``."""
    asked = config.model_dump(include={"n_tokens", "batch_size", "lr"}, exclude_none=True)
    if not isinstance(trained, dict) and "n_tokens" not in asked:
        raise ConfigError(
            "The crosscoder is imported, so its training is unknown; set baselines.n_tokens, and batch_size and lr if needed."
        )
    has_k = crosscoder.config.variant in ("batchtopk", "matryoshka", "topk")
    k = config.k or (crosscoder.config.k if has_k else max(1, round(_held_out_l0(crosscoder, store, site))))
    try:
        training = TrainConfig(**{**(trained if isinstance(trained, dict) else {}), **asked})
        options: dict[str, Any] = {"seed": config.seed, "decoder_init_norm": config.decoder_init_norm}
        return SaeBaselineConfig.matching(training, d_sae=config.d_sae or crosscoder.d_sae, k=k, **options)
    except SaeTrainingError as error:
        raise ConfigError(f"baselines: {error}") from None


def _held_out_l0(crosscoder: Crosscoder, store: ActivationStore, site: Site) -> float:
    name = crosscoder.model_names[0]
    key, coder = (name, "crosscoder"), (crosscoder.encode, partial(crosscoder.decode_model, model=name))
    found = compare(held_out_rows(store, site, crosscoder), {name: crosscoder.columns(name)}, {key: coder})
    return found[key].l0


def check_given(plan: BaselinePlan, name: str, folder: Path) -> None:
    """Raise `StoreError` where a given SAE has another width or site than the store."""
    sae = import_sae(folder)
    width = plan.store.widths[name]
    if sae.d_model != width:
        raise StoreError(f"The SAE {folder} reads width {sae.d_model}, but model {name} has {width}; give another SAE.")
    hook = sae.metadata.get("hook_name")
    known = {plan.site.hook_name, f"blocks.{plan.site.layer}.hook_out", f"blocks.{plan.site.layer + 1}.hook_resid_pre"}
    if hook is not None and hook not in known:
        raise StoreError(
            f"The SAE {folder} was trained at {hook}, but the store's site is {plan.site} ({plan.site.hook_name}); give an "
            "SAE of that site."
        )
