"""The baselines stage: an SAE of each model, beside the crosscoder's slice, on the held-out rows of one store."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.baselines.comparison import Reader, compare, joint_reader, sae_reader, slice_reader
from mechprobe.dictionary.baselines.config import BaselinesConfig
from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import spliced_losses
from mechprobe.errors import ArtifactError, ConfigError, StoreError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.stage import held_out_samples, resolve_config
from mechprobe.files import read_json, sha256_file, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.progress import progress
from mechprobe.stage_folder import Stage, read_manifest
from mechprobe.types import Site
from sae_training import (
    Crosscoder,
    SaeBaselineConfig,
    SaeTrainingError,
    SingleSae,
    TrainConfig,
    block_crosscoder,
    import_sae,
    train_sae_baseline,
)

BASELINES_FILE = "baselines.json"
TRAINED_FILE = "trained.json"
SAE_FILES = ("cfg.json", "sae_weights.safetensors")
JOINT, SLICE, OWN = "crosscoder", "slice", "sae"


@dataclass(frozen=True)
class BaselinePlan:
    """What the stage will do.

    Attributes:
        crosscoder: The dictionary.
        store: Its models' activations.
        site: Where.
        training: The configuration of each SAE; None where every SAE is given.
        batch_seed: Of the order of rows: the crosscoder's.
        pool_rows: Rows mixed with each other in memory: the crosscoder's.
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
        """Where each model stands in a row."""
        return {name: self.crosscoder.columns(name) for name in self.crosscoder.model_names}


def plan_baselines(
    crosscoder: Path | str,
    cache: Path | str,
    config: BaselinesConfig | None = None,
    *,
    features: FeaturesConfig | None = None,
    device: str = "cpu",
) -> BaselinePlan:
    """What `measure_baselines` would train and measure, checked.

    Raises:
        ConfigError: A setting that only a training by mechprobe fixes is missing, or an SAE is of no such model.
        ArtifactError: A folder is no finished stage.
        StoreError: The store has no held-out rows.
    """
    config = config or BaselinesConfig()
    given = {name: Path(path) for name, path in config.saes.items()}
    manifest = read_manifest(crosscoder)
    dictionary = Crosscoder.load(crosscoder, device)
    store = ActivationStore.open(cache, models=dictionary.model_names)
    found = resolve_config(features or FeaturesConfig(), crosscoder, store)
    site = store.resolve_site(found.site)
    for name in given:
        if name not in dictionary.model_names:
            names = ", ".join(dictionary.model_names)
            raise ConfigError(f"An SAE is given for '{name}', but the crosscoder is of {names}; name one of them.")
    if not bool(store.tokens.held_out.any()):
        raise StoreError(
            f"{store.folder} has no held-out rows to compare on; make it again with a larger held-out share."
        )
    training = None
    if set(given) != set(dictionary.model_names):
        training = _training(dictionary, store, site, manifest["config"].get("training"), config)
    settings = manifest["config"]
    batch_seed = int((settings.get("training") or {}).get("seed", config.seed))
    return BaselinePlan(dictionary, store, site, training, batch_seed, int(settings.get("pool_rows", 65536)), given)


def measure_baselines(
    crosscoder: Path | str,
    cache: Path | str,
    *,
    out: Path | str,
    family: ModelFamily | None = None,
    config: BaselinesConfig | None = None,
    features: FeaturesConfig | None = None,
    device: str = "cpu",
    force: bool = False,
) -> dict[str, Any]:
    """Train an SAE for each model on the rows that the crosscoder was trained on, and compare them on held-out rows.

    Each finished SAE is kept: an interrupted stage goes on with the next model.

    Args:
        crosscoder: Folder written by ``mechprobe train-sae`` or ``mechprobe crosscoder import``.
        cache: Folder written by ``mechprobe cache``.
        out: Where the stage writes: ``baselines.json``, ``manifest.json`` and, per trained model, a folder that
            ``sae_lens.SAE.load_from_disk`` opens.
        family: The models; without them the spliced loss is left out.
        config: Settings, and the SAEs to take instead of training; everything from the crosscoder when None.
        features: Site, read-out of the slice, and size of the spliced loss; the defaults when None.
        device: Where to train and measure.
        force: Make a finished folder again.

    Returns:
        The content of ``baselines.json``.

    Raises:
        ConfigError, ArtifactError, StoreError: Settings, folders or models do not fit.
        SaeTrainingError: A loss is not finite, or an SAE cannot be imported.
    """
    config = config or BaselinesConfig()
    plan = plan_baselines(crosscoder, cache, config, features=features, device=device)
    features = resolve_config(features or FeaturesConfig(), crosscoder, plan.store)
    if family is not None:
        family = family.subset(*plan.crosscoder.model_names)
        plan.store.check_family(family)
    for name, folder in plan.given.items():
        _check_given(plan, name, folder)
    settings = {
        "training": plan.training.model_dump(mode="json") if plan.training else None,
        "batch_seed": plan.batch_seed,
        "pool_rows": plan.pool_rows,
        "given": {name: [sha256_file(path / file) for file in SAE_FILES] for name, path in plan.given.items()},
        "site": str(plan.site),
        "readout": str(Readout(features.readout, features.near)),
        "ce_samples": features.ce_samples if family is not None else None,
        **(family.reduced_dtypes if family is not None else {}),
    }
    inputs: dict[str, Path | str] = {"crosscoder": crosscoder, "cache": cache}
    models = family.fingerprints if family is not None else {}
    with Stage.open(out, name="baselines", config=settings, inputs=inputs, models=models, force=force) as stage:
        if not stage.done:
            _run(stage, plan, family, features, device)
    return read_json(Path(out) / BASELINES_FILE)


def _training(
    crosscoder: Crosscoder, store: ActivationStore, site: Site, trained: Any, config: BaselinesConfig
) -> SaeBaselineConfig:
    """The crosscoder's training as one of an SAE, with the changes asked for."""
    asked = {name: getattr(config, name) for name in ("n_tokens", "batch_size", "lr")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not isinstance(trained, dict) and "n_tokens" not in asked:
        raise ConfigError(
            "The crosscoder does not say how it was trained (it is imported); give baselines.n_tokens, and batch_size and "
            "lr where they matter."
        )
    k = config.k
    if k is None and crosscoder.config.variant in ("batchtopk", "matryoshka", "topk"):
        k = crosscoder.config.k
    if k is None:
        readers = {(name, JOINT): joint_reader(crosscoder, name) for name in crosscoder.model_names[:1]}
        rows = _held_out(store, site, crosscoder)
        columns = {name: crosscoder.columns(name) for name in crosscoder.model_names}
        k = max(1, round(next(iter(compare(rows, columns, readers).values())).l0))
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


def _check_given(plan: BaselinePlan, name: str, folder: Path) -> None:
    """Raise where a given SAE reads another width or another place than the store holds."""
    sae = import_sae(folder)
    width = plan.store.widths[name]
    if sae.d_model != width:
        raise StoreError(f"The SAE {folder} reads width {sae.d_model}, model {name} has {width}; give another SAE.")
    hook = sae.metadata.get("hook_name")
    known = {plan.site.hook_name, f"blocks.{plan.site.layer}.hook_out", f"blocks.{plan.site.layer + 1}.hook_resid_pre"}
    if hook is not None and hook not in known:
        raise StoreError(
            f"The SAE {folder} was trained at {hook}, the store's site is {plan.site} ({plan.site.hook_name}); "
            "give an SAE of that site."
        )


def _run(stage: Stage, plan: BaselinePlan, family: ModelFamily | None, features: FeaturesConfig, device: str) -> None:
    saes = {name: _sae_of(stage.folder, plan, name, device) for name in plan.crosscoder.model_names}
    readout = Readout(features.readout, features.near)
    found = compare(_held_out(plan.store, plan.site, plan.crosscoder), plan.columns, _readers(plan, saes, readout))
    rows = {name: {label: asdict(value) for (model, label), value in found.items() if model == name} for name in saes}
    note = None
    if family is not None:
        note = _add_spliced(rows, plan, saes, family, features)
    n_rows = next(iter(found.values())).n_rows
    result = {
        "models": rows,
        "d_sae": {"crosscoder": plan.crosscoder.d_sae, **{name: sae.d_sae for name, sae in saes.items()}},
        "sources": {name: str(plan.given[name]) if name in plan.given else "trained here" for name in saes},
        "training": plan.training.model_dump(mode="json") if plan.training else None,
        "readout": str(readout),
        "site": str(plan.site),
        "held_out_rows": n_rows,
        "ce_note": note,
    }
    write_json(stage.folder / BASELINES_FILE, result)
    trained = [name for name in saes if name not in plan.given]
    stage.finish(
        outputs=[BASELINES_FILE, *(f"{name}/{file}" for name in trained for file in (*SAE_FILES, TRAINED_FILE))],
        counts={"held_out_rows": n_rows, "trained": len(trained)},
        results={name: {label: row["fve"] for label, row in by_label.items()} for name, by_label in rows.items()},
        seed=plan.training.seed if plan.training else None,
    )


def _readers(plan: BaselinePlan, saes: Mapping[str, SingleSae], readout: Readout) -> dict[tuple[str, str], Reader]:
    readers: dict[tuple[str, str], Reader] = {}
    for name, sae in saes.items():
        readers[name, JOINT] = joint_reader(plan.crosscoder, name)
        if plan.crosscoder.config.same_width:
            readers[name, SLICE] = slice_reader(plan.crosscoder, name, readout)
        readers[name, OWN] = sae_reader(sae, plan.columns[name])
    return readers


def _sae_of(folder: Path, plan: BaselinePlan, name: str, device: str) -> SingleSae:
    """The SAE of one model: given, finished before, or trained now."""
    if name in plan.given:
        return import_sae(plan.given[name]).to(device)
    if plan.training is None:
        raise ArtifactError(f"No SAE is given for {name} and none is to be trained; give one with --sae.")
    out = folder / name
    if (out / TRAINED_FILE).is_file():
        recorded = read_json(out / TRAINED_FILE)
        if recorded == {file: sha256_file(out / file) for file in SAE_FILES}:
            return import_sae(out).to(device)
    index = plan.crosscoder.model_index(name)
    scale = plan.crosscoder.scale if plan.crosscoder.has_scale else plan.store.scale(plan.site)
    store = ActivationStore.open(plan.store.folder, models=(name,))
    batches = store.batches(
        plan.training.batch_size, plan.batch_seed, site=plan.site, epochs=None, pool_rows=plan.pool_rows
    )
    with progress(plan.training.n_tokens, f"SAE of {name}", unit="tokens") as advance:
        sae = train_sae_baseline(
            batches,
            plan.training,
            out,
            scale=float(scale[index]),
            metadata={"model_name": name, "hook_name": plan.site.hook_name},
            device=device,
            on_step=lambda n_tokens, losses: advance(n_tokens, **losses),
        )
    write_json(out / TRAINED_FILE, {file: sha256_file(out / file) for file in SAE_FILES})
    return sae.to(device)


def _held_out(store: ActivationStore, site: Site, crosscoder: Crosscoder) -> Iterator[Tensor]:
    """Held-out rows, models side by side, on the crosscoder's device."""
    for batch in store.batches(4096, 0, site=site, split="held_out", epochs=1):
        yield crosscoder.flatten(batch.to(crosscoder.device))


def _add_spliced(
    rows: dict[str, dict[str, Any]],
    plan: BaselinePlan,
    saes: Mapping[str, SingleSae],
    family: ModelFamily,
    features: FeaturesConfig,
) -> str | None:
    """CE recovered of crosscoder and SAEs; a sentence where the SAEs cannot stand side by side."""
    samples = held_out_samples(plan.store, features.ce_samples)
    dictionaries = {JOINT: plan.crosscoder}
    note = None
    try:
        dictionaries[OWN] = block_crosscoder(saes).to(plan.crosscoder.device)
    except SaeTrainingError as error:
        note = f"CE recovered of the SAEs is left out: {error}"
    for label, dictionary in dictionaries.items():
        losses = spliced_losses(dictionary, family, plan.site, samples, batch_size=features.ce_batch)
        for name, loss in losses.items():
            rows[name][label]["ce_recovered"] = loss.ce_recovered
            rows[name][label]["n_predictions"] = loss.n_predictions
    return note
