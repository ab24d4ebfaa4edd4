"""The stage ``baselines``: the SAE of each model beside the crosscoder and its slice, on the held-out rows of one store."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.baselines.config import BaselinesConfig
from mechprobe.dictionary.baselines.plan import (
    SAE_FILES,
    BaselinePlan,
    Coder,
    check_given,
    compare,
    held_out_rows,
    plan_baselines,
)
from mechprobe.dictionary.baselines.result import Baselines, Reconstruction
from mechprobe.dictionary.config import QualityConfig
from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import held_out_samples, spliced_losses
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json, sha256_file, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity, progress
from mechprobe.stage_folder import Stage
from sae_training import SaeTrainingError, SingleSae, block_crosscoder, import_sae, train_sae_baseline

BASELINES_FILE = "baselines.json"
TRAINED_FILE = "trained.json"
JOINT, SLICE, OWN = "crosscoder", "slice", "sae"


def measure_baselines(
    crosscoder: Path | str,
    cache: Path | str,
    *,
    out: Path | str,
    family: ModelFamily | None = None,
    config: BaselinesConfig | None = None,
    quality: QualityConfig | None = None,
    device: str = "cpu",
    force: bool = False,
) -> Baselines:
    """Train an SAE for each model on the crosscoder's training rows, and compare them all on held-out rows.

    Each trained SAE is kept, so an interrupted stage resumes with the next model.

    Args:
        crosscoder: Folder written by ``mechprobe train-sae`` or ``mechprobe crosscoder import``.
        cache: Folder written by ``mechprobe cache``.
        out: Stage folder: ``baselines.json``, ``manifest.json`` and, per trained model, a folder for
            ``sae_lens.SAE.load_from_disk``.
        family: The models; without them the spliced loss is not measured.
        config: Settings, and SAEs to take instead of training; the crosscoder's settings when None.
        quality: Site, read-out of the slice, and size of the spliced loss; the defaults when None.
        device: torch device to train and measure on.
        force: Make a finished folder again.

    Raises:
        ConfigError, ArtifactError, StoreError: Settings, folders or models do not fit together.
        SaeTrainingError: A loss is not finite, or an SAE cannot be imported.
    """
    config = config or BaselinesConfig()
    plan = plan_baselines(crosscoder, cache, config, quality=quality, device=device)
    quality = (quality or QualityConfig()).with_site(crosscoder, plan.store)
    if family is not None:
        family = family.subset(*plan.crosscoder.model_names)
        plan.store.check_family(family)
    for name, folder in plan.given.items():
        check_given(plan, name, folder)
    settings = {
        "training": plan.training_settings,
        "batch_seed": plan.batch_seed,
        "pool_rows": plan.pool_rows,
        "given": {name: [sha256_file(path / file) for file in SAE_FILES] for name, path in plan.given.items()},
        "site": str(plan.site),
        "readout": str(Readout(quality.readout, quality.near)),
        "ce_samples": quality.ce_samples if family is not None else None,
        **(family.identity if family is not None else {}),
    }
    inputs: dict[str, Path | str] = {"crosscoder": crosscoder, "cache": cache}
    models = family.fingerprints if family is not None else {}
    with Stage.open(out, name="baselines", config=settings, inputs=inputs, models=models, force=force) as stage:
        if not stage.done:
            _run(stage, plan, family, quality, device)
    return Baselines.load(Path(out) / BASELINES_FILE)


def _run(stage: Stage, plan: BaselinePlan, family: ModelFamily | None, quality: QualityConfig, device: str) -> None:
    saes = {name: _sae_of(stage.folder, plan, name, device) for name in plan.crosscoder.model_names}
    readout = Readout(quality.readout, quality.near)
    coders = {key: coder for name, sae in saes.items() for key, coder in _coders(plan, name, sae, readout).items()}
    with activity("reconstruction of held-out rows"):
        rows = held_out_rows(plan.store, plan.site, plan.crosscoder)
        found = compare(rows, plan.columns, coders)
    note = _add_spliced(found, plan, saes, family, quality) if family is not None else None
    n_rows = next(iter(found.values())).n_rows
    Baselines(
        models={name: {label: row for (model, label), row in found.items() if model == name} for name in saes},
        d_sae={"crosscoder": plan.crosscoder.d_sae, **{name: sae.d_sae for name, sae in saes.items()}},
        sources={name: str(plan.given[name]) if name in plan.given else "trained here" for name in saes},
        training=plan.training_settings,
        readout=str(readout),
        site=str(plan.site),
        held_out_rows=n_rows,
        ce_note=note,
    ).save(stage.folder / BASELINES_FILE)
    trained = [name for name in saes if name not in plan.given]
    stage.finish(
        outputs=[BASELINES_FILE, *(f"{name}/{file}" for name in trained for file in (*SAE_FILES, TRAINED_FILE))],
        counts={"held_out_rows": n_rows, "trained": len(trained)},
        results={name: {label: row.fve for (model, label), row in found.items() if model == name} for name in saes},
        seed=plan.training.seed if plan.training else None,
    )


def _coders(plan: BaselinePlan, name: str, sae: SingleSae, readout: Readout) -> dict[tuple[str, str], Coder]:
    """The dictionaries of one model, by (model, label)."""
    crosscoder, columns = plan.crosscoder, plan.columns[name]
    decode = partial(crosscoder.decode_model, model=name)
    coders: dict[tuple[str, str], Coder] = {(name, JOINT): (crosscoder.encode, decode)}
    if crosscoder.config.same_width:
        shape = (crosscoder.n_models, -1)
        coders[name, SLICE] = (lambda x: readout.feature_acts(crosscoder, x.unflatten(1, shape), name), decode)
    return coders | {(name, OWN): (lambda x: sae.encode(x[:, columns]), sae.decode)}


def _sae_of(folder: Path, plan: BaselinePlan, name: str, device: str) -> SingleSae:
    """The SAE of one model: given, trained by an earlier call, or trained now."""
    if name in plan.given:
        return import_sae(plan.given[name]).to(device)
    if plan.training is None:
        raise ArtifactError(f"No SAE is given for {name}, although no SAE will be trained; give one with --sae.")
    out = folder / name
    if (out / TRAINED_FILE).is_file() and read_json(out / TRAINED_FILE) == _hashes(out):
        return import_sae(out).to(device)
    index = plan.crosscoder.model_index(name)
    scale = plan.crosscoder.scale if plan.crosscoder.has_scale else plan.store.scale(plan.site)
    store = ActivationStore.open(plan.store.folder, models=(name,))
    batches = store.batches(
        plan.training.batch_size, plan.batch_seed, site=plan.site, epochs=None, pool_rows=plan.pool_rows
    ).to(device)
    n_tokens = plan.training.n_steps * plan.training.batch_size
    with progress(n_tokens, f"SAE of {name}", unit="tokens") as advance:
        sae = train_sae_baseline(
            batches,
            plan.training,
            out,
            scale=float(scale[index]),
            metadata={"model_name": name, "hook_name": plan.site.hook_name},
            device=device,
            on_step=lambda n_tokens, losses: advance(n_tokens, **losses),
        )
    write_json(out / TRAINED_FILE, _hashes(out))
    return sae.to(device)


def _hashes(folder: Path) -> dict[str, str]:
    return {file: sha256_file(folder / file) for file in SAE_FILES}


def _add_spliced(
    found: dict[tuple[str, str], Reconstruction],
    plan: BaselinePlan,
    saes: Mapping[str, SingleSae],
    family: ModelFamily,
    quality: QualityConfig,
) -> str | None:
    """Add CE recovered to the crosscoder and the SAEs; returns why the SAEs' is missing, if it is."""
    samples = held_out_samples(plan.store, quality.ce_samples)
    dictionaries = {JOINT: plan.crosscoder}
    note = None
    try:
        dictionaries[OWN] = block_crosscoder(saes).to(plan.crosscoder.device)
    except SaeTrainingError as error:
        note = f"CE recovered of the SAEs is not measured: {error}"
    for label, dictionary in dictionaries.items():
        losses = spliced_losses(dictionary, family, plan.site, samples, batch_size=quality.ce_batch)
        for name, loss in losses.items():
            spliced = {"ce_recovered": loss.ce_recovered, "n_predictions": loss.n_predictions}
            found[name, label] = found[name, label].model_copy(update=spliced)
    return note
