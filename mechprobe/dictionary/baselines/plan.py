"""The checked plan of the baselines stage: which SAEs are given, and how the others are trained."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.baselines.config import BaselinesConfig
from mechprobe.dictionary.baselines.result import Reconstruction
from mechprobe.dictionary.config import QualityConfig
from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ConfigError, StoreError
from mechprobe.stage_folder import read_manifest
from mechprobe.types import Site
from sae_training import (
    Crosscoder,
    ReconstructionSums,
    SaeBaselineConfig,
    SaeTrainingError,
    SingleSae,
    TrainConfig,
    VarianceSums,
    import_sae,
)

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps raw rows of all models, side by side, to features ``[batch d_sae]`` and the reconstruction of one model."""

_BATCH_ROWS = 4096


def held_out_rows(store: ActivationStore, site: Site, crosscoder: Crosscoder) -> Iterator[Float[Tensor, "batch d_all"]]:
    """Held-out rows of all models, side by side and raw, on the crosscoder's device."""
    for batch in store.batches(_BATCH_ROWS, 0, site=site, split="held_out", epochs=1):
        yield crosscoder.flatten(batch.to(crosscoder.device))


def by_crosscoder(crosscoder: Crosscoder, model: str) -> Reconstruct:
    """The crosscoder as it was trained: one set of feature activations for all models."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        feature_acts = crosscoder.encode(x)
        return feature_acts, crosscoder.decode_model(feature_acts, model)

    return reconstruct


def by_slice(crosscoder: Crosscoder, model: str, readout: Readout) -> Reconstruct:
    """The crosscoder as a dictionary of one model, under that model's read-out (models of one width)."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        stacked = x.reshape(len(x), crosscoder.n_models, -1)
        feature_acts = readout.feature_acts(crosscoder, stacked, model)
        return feature_acts, crosscoder.decode_model(feature_acts, model)

    return reconstruct


def by_sae(sae: SingleSae, columns: slice) -> Reconstruct:
    """The SAE of the model whose residuals are in ``columns``."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        feature_acts = sae.encode(x[:, columns])
        return feature_acts, sae.decode(feature_acts)

    return reconstruct


@torch.no_grad()
def compare(
    batches: Iterable[Tensor], columns: Mapping[str, slice], reconstructions: Mapping[tuple[str, str], Reconstruct]
) -> dict[tuple[str, str], Reconstruction]:
    """Reconstruct the same rows by every dictionary, with sums in float64.

    Args:
        batches: Raw residuals of all models, side by side, ``[batch d_all]``.
        columns: The columns of each model.
        reconstructions: Dictionaries by (model, label).

    Raises:
        StoreError: There are no rows.
    """
    sums = {key: ReconstructionSums() for key in reconstructions}
    variance: VarianceSums | None = None
    for x in batches:
        # One sum per column, so that the columns of any model can be added up.
        variance = variance or VarianceSums([1] * x.shape[1])
        exact = x.double()
        variance.update(exact)
        for key, reconstruct in reconstructions.items():
            feature_acts, x_hat = reconstruct(x)
            sums[key].update(feature_acts, exact[:, columns[key[0]]] - x_hat)
    if variance is None or variance.n_tokens == 0:
        raise StoreError("The activation store has no held-out rows; make it again with a larger held-out share.")
    by_column = variance.compute()
    return {
        key: Reconstruction(
            fve=float(found.fve(by_column[columns[key[0]]].sum())),
            l0=found.l0,
            dead_frac=found.dead_frac,
            n_rows=found.n_tokens,
        )
        for key, found in sums.items()
    }


SAE_FILES = ("cfg.json", "sae_weights.safetensors")


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
    store = ActivationStore.open(cache, models=dictionary.model_names)
    site = store.resolve_site((quality or QualityConfig()).with_site(crosscoder, store).site)
    for name in given:
        if name not in dictionary.model_names:
            names = ", ".join(dictionary.model_names)
            raise ConfigError(
                f"An SAE is given for '{name}', but the crosscoder's models are {names}; name one of them."
            )
    if not bool(store.tokens.held_out.any()):
        raise StoreError(
            f"{store.folder} has no held-out rows to compare on; cache again with a larger held-out share."
        )
    training = None
    if set(given) != set(dictionary.model_names):
        training = _training(dictionary, store, site, settings.get("training"), config)
    batch_seed = int((settings.get("training") or {}).get("seed", config.seed))
    return BaselinePlan(dictionary, store, site, training, batch_seed, int(settings.get("pool_rows", 65536)), given)


def _training(
    crosscoder: Crosscoder, store: ActivationStore, site: Site, trained: Any, config: BaselinesConfig
) -> SaeBaselineConfig:
    """The crosscoder's training settings as those of an SAE, with the changes in ``config``."""
    asked = {name: getattr(config, name) for name in ("n_tokens", "batch_size", "lr")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not isinstance(trained, dict) and "n_tokens" not in asked:
        raise ConfigError(
            "The crosscoder is imported, so its training settings are unknown; set baselines.n_tokens (and batch_size and lr, "
            "unless the defaults serve)."
        )
    k = config.k
    if k is None and crosscoder.config.variant in ("batchtopk", "matryoshka", "topk"):
        k = crosscoder.config.k
    if k is None:
        k = max(1, round(_held_out_l0(crosscoder, store, site)))
    try:
        training = TrainConfig(**{**(trained if isinstance(trained, dict) else {}), **asked})
        return SaeBaselineConfig.matching(
            training,
            d_sae=config.d_sae or crosscoder.d_sae,
            k=k,
            seed=config.seed,
            decoder_init_norm=config.decoder_init_norm,
        )
    except SaeTrainingError as error:
        raise ConfigError(f"baselines: {error}") from None


def _held_out_l0(crosscoder: Crosscoder, store: ActivationStore, site: Site) -> float:
    name = crosscoder.model_names[0]
    reconstructions = {(name, "crosscoder"): by_crosscoder(crosscoder, name)}
    columns = {name: crosscoder.columns(name)}
    return next(iter(compare(held_out_rows(store, site, crosscoder), columns, reconstructions).values())).l0


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
