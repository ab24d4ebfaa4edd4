"""The stage ``features``: the table, the quality and the examples of a crosscoder, in one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.quality import held_out_quality
from mechprobe.dictionary.result import Quality
from mechprobe.display import Displayed
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.examples.contexts import EXAMPLES_FILE, check_features, feature_examples, shown_features
from mechprobe.features.examples.promoted import PromotedOfModels, check_unembedding, promoted_by_features
from mechprobe.features.table.feature_table import FeatureTable, feature_table, require_table_packages
from mechprobe.files import write_json
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity
from mechprobe.stage_folder import Stage, read_manifest
from sae_training import Crosscoder

QUALITY_FILE = "quality.json"


@dataclass(frozen=True, repr=False)
class FeatureAnalysis(Displayed):
    """The result of the features stage: its folder, its table, and the quality of the crosscoder on held-out rows."""

    folder: Path
    table: FeatureTable
    quality: Quality

    def _in_short(self) -> str:
        return f"{str(self.folder)!r}, {'trusted' if self.trusted else 'untrusted'}: {self.table}"

    @property
    def trusted(self) -> bool:
        """Whether the crosscoder passed the quality gate."""
        return self.quality.trusted


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
    """Describe every feature of a trained crosscoder, and measure how good the crosscoder is.

    Args:
        crosscoder: Folder written by ``mechprobe train-sae``.
        cache: Folder written by ``mechprobe cache``.
        out: Stage folder: ``table.parquet``, ``top_rows.parquet``, ``summary.json``, ``quality.json``, ``examples.json``,
            ``manifest.json``.
        family: The models. Without them the spliced loss and the examples are left out.
        config: Settings; the defaults when None.
        device: torch device of the crosscoder.
        force: Make a finished folder again.

    Returns:
        Table and quality, read from the folder where the stage is finished.

    Raises:
        ConfigError, StoreError, SiteError: Settings, store and crosscoder do not fit together.
        DependencyError: pandas or pyarrow is not installed.
        ModelError: The unembedding of the models cannot be used for promoted tokens.
        ArtifactError: The folder holds other work, or an input folder is not a finished stage.
    """
    require_table_packages()
    dictionary, store = open_inputs(crosscoder, cache, device)
    folder, config = Path(out), (config or FeaturesConfig()).with_site(crosscoder, store)
    if family is not None:
        family = family.subset(*dictionary.model_names)
        store.check_family(family)
    settings = {**config.model_dump(mode="json", exclude={"ce_batch"}), "models_given": family is not None}
    settings |= family.identity if family is not None else {}
    inputs = {"crosscoder": Path(crosscoder), "cache": Path(cache)}
    models = family.fingerprints if family is not None else {}
    with Stage.open(folder, name="features", config=settings, inputs=inputs, models=models, force=force) as stage:
        if not stage.done:
            _run(stage, dictionary, store, family, config)
    return FeatureAnalysis(folder, FeatureTable.load(folder), Quality.load(folder / QUALITY_FILE))


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
    """Write contexts and promoted tokens of chosen features, in the order wanted, to ``out`` (``examples/`` of a run).

    ``features`` is the folder that `analyze_features` wrote; the other arguments are as there. ``out`` is made again when the
    choice has changed. The tokenizer of the family decodes the contexts, and its unembeddings give the promoted tokens.

    Raises:
        SelectionError: A feature does not exist or is given twice.
        StoreError: The models are not those of the store.
    """
    dictionary, store = open_inputs(crosscoder, cache, device)
    config = (config or FeaturesConfig()).with_site(crosscoder, store)
    family = family.subset(*dictionary.model_names)
    store.check_family(family)
    table = FeatureTable.load(features)
    check_features(chosen, table)
    settings = {**config.model_dump(mode="json", exclude={"ce_batch"}), "features": list(chosen), **family.identity}
    inputs: dict[str, Path | str] = {"crosscoder": crosscoder, "cache": cache, "features": features}
    models = family.fingerprints
    with Stage.open(out, name="examples", config=settings, inputs=inputs, models=models, remake=True) as stage:
        if not stage.done:
            with activity("collecting examples"):
                n, norm, promoted = config.n_promoted, config.final_norm, None
                if n:
                    promoted = promoted_by_features(dictionary, family, chosen, n=n, final_norm=norm)
                examples = feature_examples(
                    dictionary, store, family.tokenizer, table, chosen, config, promoted=promoted
                )
            write_json(stage.folder / EXAMPLES_FILE, {"features": examples})
            stage.finish(outputs=[EXAMPLES_FILE], counts={"features": len(examples)})
    return Path(out)


def open_inputs(crosscoder: Path | str, cache: Path | str, device: str) -> tuple[Crosscoder, ActivationStore]:
    """The crosscoder of a finished stage, of one site, and the store with the rows of its models."""
    read_manifest(crosscoder)
    dictionary = Crosscoder.load(crosscoder, device)
    dictionary.require_one_site()
    return dictionary, ActivationStore.open(cache, models=dictionary.model_names)


def _run(
    stage: Stage, crosscoder: Crosscoder, store: ActivationStore, family: ModelFamily | None, config: FeaturesConfig
) -> None:
    if family is not None and config.n_promoted and config.n_shown:  # promoted tokens go through the unembedding
        check_unembedding(family[crosscoder.model_names[0]])
    table = feature_table(crosscoder, store, config)
    outputs = table.save(stage.folder)
    shown, promoted = shown_features(table, config.n_shown), None
    if family is not None and config.n_promoted:
        n, norm = config.n_promoted, config.final_norm
        promoted = PromotedOfModels(crosscoder, shown, family.tokenizer, n=n, final_norm=norm)
    quality = held_out_quality(crosscoder, store, family, config, also=promoted and promoted.add)
    quality.save(stage.folder / QUALITY_FILE)
    outputs.append(QUALITY_FILE)
    if family is not None:
        with activity("collecting examples"):
            tokens = promoted and promoted.by_feature
            examples = feature_examples(crosscoder, store, family.tokenizer, table, shown, config, promoted=tokens)
        write_json(stage.folder / EXAMPLES_FILE, {"features": examples})
        outputs.append(EXAMPLES_FILE)
    found, fve = table.summary(), {name: model.fve for name, model in quality.models.items()}
    counts = {"rows": found.n_rows, "held_out_rows": quality.n_rows, "features": len(table), "alive": found.n_alive}
    verdict = {"trusted": quality.trusted, "failures": list(quality.failures)}
    stage.finish(outputs=outputs, counts=counts, results={"class_counts": found.class_counts, "fve": fve, **verdict})
