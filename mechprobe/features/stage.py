"""The features stage: table, quality and examples of a crosscoder, in one folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.quality import Quality, measure_quality
from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import ReadSample, spliced_losses
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.examples.contexts import EXAMPLES_FILE, check_features, feature_examples, shown_features
from mechprobe.features.examples.promoted import check_unembedding
from mechprobe.features.table.feature_table import FeatureTable, feature_table
from mechprobe.files import read_json, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import Stage, read_manifest
from sae_training import Crosscoder

QUALITY_FILE = "quality.json"


@dataclass(frozen=True)
class FeatureAnalysis:
    """What the features stage made.

    Attributes:
        folder: The stage folder.
        table: One row per latent.
        quality: The content of ``quality.json``: numbers per model, the gate, ``trusted``.
    """

    folder: Path
    table: FeatureTable
    quality: dict[str, Any]

    @property
    def trusted(self) -> bool:
        """Whether the crosscoder passed the quality gate."""
        return bool(self.quality["trusted"])


def analyze_features(
    crosscoder: Path | str,
    cache: Path | str,
    *,
    out: Path | str,
    family: ModelFamily | None = None,
    config: FeaturesConfig | None = None,
    device: str = "cpu",
    force: bool = False,
) -> FeatureAnalysis:
    """Describe every latent of a trained crosscoder and measure how good the crosscoder is.

    Args:
        crosscoder: Folder written by ``mechprobe train-sae``.
        cache: Folder written by ``mechprobe cache``.
        out: Where the stage writes: ``table.parquet``, ``top_rows.parquet``, ``summary.json``, ``quality.json``,
            ``examples.json``, ``manifest.json``.
        family: The models; without them the spliced loss and the token texts are left out, and said to be.
        config: Settings; the defaults when None.
        device: Where the crosscoder runs.
        force: Make a finished folder again.

    Returns:
        Table and quality, read back where the stage was already done.
    """
    dictionary, store = _open(crosscoder, cache, device)
    folder, config = Path(out), resolve_config(config or FeaturesConfig(), crosscoder, store)
    if family is not None:
        family = family.subset(*dictionary.model_names)
        store.check_family(family)
    settings = {**config.model_dump(mode="json"), "models_given": family is not None}
    settings |= family.reduced_dtypes if family is not None else {}
    inputs = {"crosscoder": Path(crosscoder), "cache": Path(cache)}
    models = family.fingerprints if family is not None else {}
    with Stage.open(folder, name="features", config=settings, inputs=inputs, models=models, force=force) as stage:
        if not stage.done:
            _run(stage, dictionary, store, family, config)
    return FeatureAnalysis(folder, FeatureTable.load(folder), read_json(folder / QUALITY_FILE))


def explain_features(
    chosen: Sequence[int],
    *,
    crosscoder: Path | str,
    cache: Path | str,
    features: Path | str,
    family: ModelFamily,
    out: Path | str,
    config: FeaturesConfig | None = None,
    device: str = "cpu",
) -> Path:
    """Contexts and promoted tokens of features chosen after the features stage, kept in ``out`` (``examples/`` of a run).

    Args:
        chosen: Ids, in the order wanted.
        crosscoder: Folder of the crosscoder.
        cache: Folder of the activation store.
        features: Folder written by `analyze_features`.
        family: The models: their tokenizer turns ids into text, their unembeddings give the promoted tokens.
        out: Where ``examples.json`` goes; it is written again when the choice has changed.
        config: Settings; the defaults when None.
        device: Where the crosscoder runs.

    Raises:
        SelectionError: A feature does not exist.
        StoreError: The models are not those of the store.
    """
    dictionary, store = _open(crosscoder, cache, device)
    config = resolve_config(config or FeaturesConfig(), crosscoder, store)
    family = family.subset(*dictionary.model_names)
    store.check_family(family)
    table = FeatureTable.load(features)
    check_features(chosen, table)
    settings = {**config.model_dump(mode="json"), "features": list(chosen), **family.reduced_dtypes}
    inputs: dict[str, Path | str] = {"crosscoder": crosscoder, "cache": cache, "features": features}
    models = family.fingerprints
    with Stage.open(out, name="examples", config=settings, inputs=inputs, models=models, remake=True) as stage:
        if not stage.done:
            examples = feature_examples(dictionary, store, family.tokenizer, table, chosen, config, family=family)
            write_json(stage.folder / EXAMPLES_FILE, {"features": examples})
            stage.finish(outputs=[EXAMPLES_FILE], counts={"features": len(examples)})
    return Path(out)


def _open(crosscoder: Path | str, cache: Path | str, device: str) -> tuple[Crosscoder, ActivationStore]:
    read_manifest(crosscoder)
    dictionary = Crosscoder.load(crosscoder, device)
    dictionary.require_one_site()
    return dictionary, ActivationStore.open(cache, models=dictionary.model_names)


def _run(
    stage: Stage, crosscoder: Crosscoder, store: ActivationStore, family: ModelFamily | None, config: FeaturesConfig
) -> None:
    if family is not None and config.n_promoted and config.n_shown:
        check_unembedding(family[crosscoder.model_names[0]])
    table = feature_table(crosscoder, store, config)
    outputs = table.save(stage.folder)
    quality = held_out_quality(crosscoder, store, family, config)
    write_json(stage.folder / QUALITY_FILE, quality.to_json())
    outputs.append(QUALITY_FILE)
    if family is not None:
        shown = shown_features(table, config.n_shown)
        examples = feature_examples(crosscoder, store, family.tokenizer, table, shown, config, family=family)
        write_json(stage.folder / EXAMPLES_FILE, {"features": examples})
        outputs.append(EXAMPLES_FILE)
    summary = table.summary()
    stage.finish(
        outputs=outputs,
        counts={
            "rows": table.n_rows,
            "held_out_rows": quality.n_rows,
            "features": len(table),
            "alive": summary["n_alive"],
        },
        results={
            "class_counts": summary["class_counts"],
            "fve": {name: model.fve for name, model in quality.models.items()},
            "trusted": quality.trusted,
            "failures": list(quality.failures),
        },
    )


def held_out_quality(
    crosscoder: Crosscoder, store: ActivationStore, family: ModelFamily | None, config: FeaturesConfig
) -> Quality:
    """`measure_quality` on the held-out split of a store, with the spliced loss where the models are given."""
    losses = None
    if family is not None:
        site = store.resolve_site(config.site)
        samples = held_out_samples(store, config.ce_samples)
        losses = spliced_losses(crosscoder, family, site, samples, batch_size=config.ce_batch)
    readout = Readout(config.readout, config.near)

    def batches() -> Iterable[Tensor]:
        return store.batches(config.batch_rows, seed=0, site=config.site, split="held_out", epochs=1)

    return measure_quality(crosscoder, batches, readout=readout, gate=config.gate, losses=losses)


def held_out_samples(store: ActivationStore, n: int) -> list[ReadSample]:
    """The first ``n`` held-out samples of a store, as the models read them."""
    sequences = (store.sequence(sample) for sample in store.held_out_samples()[:n])
    return [ReadSample(sequence.ids, sequence.kept, sequence.response) for sequence in sequences]


def resolve_config(config: FeaturesConfig, crosscoder: Path | str, store: ActivationStore) -> FeaturesConfig:
    """The settings with the site filled in: the one named, else the one the crosscoder was trained at.

    Raises:
        SiteError: The store does not hold it.
    """
    trained_at = read_manifest(crosscoder)["config"].get("site")
    site = store.resolve_site(config.site or trained_at)
    return config.replace(site=str(site))
