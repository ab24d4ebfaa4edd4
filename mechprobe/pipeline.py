"""``mechprobe run``: one configuration for all stages, and the chain from localize to report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from mechprobe.activations.config import CacheConfig
from mechprobe.activations.train_config import TrainSaeConfig
from mechprobe.artifacts import MANIFEST, Stage, read_json, read_manifest, write_json
from mechprobe.config import FrozenConfig, read_toml, with_overrides
from mechprobe.data.config import HUB, PromptsConfig
from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.evals.choice import ChoiceConfig
from mechprobe.evals.outcomes import EvaluateConfig, check_lengths, evaluate_outcomes, load_outcomes
from mechprobe.evals.tasks import Task, load_tasks, split_halves
from mechprobe.features.baselines_config import BaselinesConfig
from mechprobe.features.config import FeaturesConfig, NullsConfig, SelectConfig
from mechprobe.features.emergence.config import EmergenceConfig
from mechprobe.features.generalization import Selection, select_features
from mechprobe.features.selection import check_spec
from mechprobe.features.selection_checks import check_selection_folder
from mechprobe.features.silence import silence
from mechprobe.interventions.collateral import CollateralTexts, texts_of_store
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.localize import LocalizeConfig, SiteCeilings, localize
from mechprobe.interventions.positions import PositionRule
from mechprobe.interventions.run import InterventionResults, intervene, prepare
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes
from mechprobe.types import Site

if TYPE_CHECKING:
    from mechprobe.activations.store import ActivationStore
    from mechprobe.evals.harness import HarnessConfig
    from mechprobe.features.labels import Labeler, Labels
    from mechprobe.features.stage import FeatureAnalysis
    from mechprobe.interventions.harness import HarnessResults
    from sae_training import Crosscoder

LOCALIZE, CACHE, CROSSCODER, FEATURES = "localize", "cache", "crosscoder", "features"
EVALS, SELECTION, INTERVENTIONS, REPORT = "evals", "selection", "interventions", "report"
EXAMPLES, CHOSEN_EXAMPLES, BASELINES, HARNESS = "examples", "examples_chosen", "baselines", "harness"
N_EXPLAINED = 12
RUN_FILE = "run.json"
STAGES = ("localize", "cache", "train-sae", "features", "evaluate", "select", "intervene", "report")


class TasksConfig(FrozenConfig):
    """Where the tasks are and how they are scored."""

    file: str = ""
    """JSON lines of id, task, prompt, answer, and options where there are any."""
    scorer: str = "exact"
    """``exact``, ``numeric``, ``letter``, ``boxed``, ``final:<MARKER>`` or ``python:<module>:<function>``."""
    scorers: dict[str, str] = Field(default_factory=dict)
    """Scorers of single tasks, by task name, in the place of ``scorer``."""
    choice: ChoiceConfig = ChoiceConfig()
    """How lines with ``options`` are asked and judged."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest response, in tokens."""
    names: tuple[str, ...] | None = None
    """Tasks to use; None takes all in the file."""
    trained: tuple[str, ...] = ()
    """Tasks that post-training saw: measured, and kept out of selection and verdict."""
    force_prefix: str = ""
    """A beginning of the response that is forced on the base as a baseline, for example a marker; empty for none."""


class RunConfig(FrozenConfig):
    """Everything ``mechprobe run`` needs. Sections are named as the commands."""

    name: str = ""
    """Title of the report."""
    notes: tuple[str, ...] = ()
    """What every reader of the report must know; shown at its top."""
    models: dict[str, str] = Field(default_factory=dict)
    """Name to local folder or hub name."""
    base: str = "base"
    """Name of the model before post-training."""
    tuned: str = "rl"
    """Name of the model whose generalization is explained."""
    near: tuple[str, ...] | None = None
    """Models near enough to share encoder slots under the ``swap`` read-out; None means all."""
    tasks: TasksConfig = TasksConfig()
    prompts: PromptsConfig = PromptsConfig()
    localize: LocalizeConfig = LocalizeConfig()
    cache: CacheConfig = CacheConfig()
    train_sae: TrainSaeConfig = TrainSaeConfig()
    features: FeaturesConfig = FeaturesConfig()
    nulls: NullsConfig = NullsConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    emergence: EmergenceConfig = EmergenceConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    select: SelectConfig = SelectConfig()
    intervene: InterveneConfig = InterveneConfig()
    seed: int = Field(default=0, ge=0)
    """Given on to every stage that does not set its own."""
    device: str = "cpu"
    """Where models and crosscoder run."""
    dtype: str = "float32"
    """Of the models' weights."""
    device_map: str | dict[str, int | str] | None = None
    """How accelerate spreads each model over devices (``auto``, or device by part); None puts it on ``device``."""

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    """What was given, before shared settings are handed on: this is kept, so that a later override reaches every stage."""

    @classmethod
    def build(
        cls,
        config: Path | str | None,
        overrides: Sequence[str] = (),
        *,
        models: Mapping[str, str] | None = None,
        seed: int | None = None,
        device: str | None = None,
        extra: Mapping[str, Any] | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> "RunConfig":
        """From a TOML file (its paths relative to it) or the settings of ``start``, overrides, and options.

        Settings that several stages share (``base``, ``tuned``, ``near``, ``tasks.trained``, ``tasks.force_prefix``, ``seed``) are
        handed to every stage that does not set its own.

        Raises:
            ConfigError: The file or a setting cannot be used.
        """
        read = _anchored(read_toml(config), Path(config).parent) if config else dict(start or {})
        data = with_overrides(read, overrides)
        if models:
            data["models"] = dict(models)
        if seed is not None:
            data["seed"] = seed
        if device is not None:
            data["device"] = device
        for name, value in (extra or {}).items():
            data[name] = {**data.get(name, {}), **value} if isinstance(value, Mapping) else value
        data = _anchored(data, Path())
        made = cls(**_shared(data))
        made._given.update(data)
        return made

    @classmethod
    def of_run(cls, folder: Path | str) -> "RunConfig":
        """The configuration that a run folder was made with; `ArtifactError` where it holds none."""
        return cls.build(None, start=read_run_file(folder))

    def family(self, names: Sequence[str] | None = None, *, trust_remote_code: bool = False) -> ModelFamily:
        """The models (some of them for ``names``), found and checked.

        Raises:
            ConfigError: No models are configured.
            ModelError: One cannot be used.
        """
        if not self.models:
            raise ConfigError("No models are given; write --models base=PATH sft=PATH rl=PATH, or --config FILE.")
        missing = [name for name in names or () if name not in self.models]
        if missing:
            raise ConfigError(f"Model '{missing[0]}' is not given; the models are {', '.join(self.models)}.")
        chosen = {name: path for name, path in self.models.items() if names is None or name in names}
        return ModelFamily.load(
            chosen,
            device=self.device,
            dtype=self.dtype,
            device_map=self.device_map,
            trust_remote_code=trust_remote_code,
        )

    def load_tasks(self) -> list[Task]:
        """The tasks.

        Raises:
            ConfigError: None are configured.
            InputError: The file cannot be used.
        """
        if not self.tasks.file:
            raise ConfigError("No tasks are given; write --tasks FILE, or tasks.file in the configuration.")
        tasks = load_tasks(
            self.tasks.file,
            scorer_spec=self.tasks.scorer,
            scorers=self.tasks.scorers,
            choice=self.tasks.choice,
            max_new_tokens=self.tasks.max_new_tokens,
            names=self.tasks.names,
        )
        unknown = [name for name in self.tasks.trained if name not in {task.name for task in tasks}]
        if unknown:
            raise ConfigError(f"tasks.trained names '{unknown[0]}', which is not among the tasks.")
        return tasks

    def prompt_source(self) -> PromptsConfig:
        """The prompts of the cache; `ConfigError` where none are configured or their format cannot be told."""
        self.prompts.detected()
        return self.prompts


def _anchored(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Paths seen from ``folder``, absolute where they exist, so that a run folder works from any working directory.

    A model that is no path there stays as it is: it may be a hub name.
    """
    result = dict(data)
    if isinstance(data.get("models"), dict):
        places = {name: folder / str(path) for name, path in data["models"].items()}
        result["models"] = {
            name: str(places[name].resolve()) if places[name].exists() else str(path)
            for name, path in data["models"].items()
        }
    for section, key in (
        ("tasks", "file"),
        ("prompts", "file"),
        ("emergence", "checkpoints"),
        ("intervene", "collateral_file"),
    ):
        own = data.get(section)
        value = own.get(key) if isinstance(own, dict) else None
        if isinstance(own, dict) and isinstance(value, str) and value and not value.startswith(HUB):
            place = folder / value
            result[section] = {**own, key: str(place.resolve() if place.exists() else place)}
    return result


def read_run_file(folder: Path | str) -> dict[str, Any]:
    """The settings that a run folder was begun with; `ArtifactError` where it holds none."""
    data = read_json(Path(folder) / RUN_FILE)
    if not isinstance(data, dict):
        raise ArtifactError(f"{Path(folder) / RUN_FILE} holds no run configuration; give --config FILE.")
    return data


_SHARES = {
    "localize": ("base", "tuned", "trained"),
    "evaluate": ("base", "force_prefix"),
    "features": ("base", "near", "seed"),
    "nulls": ("seed",),
    "emergence": ("base", "seed"),
    "cache": ("seed",),
    "train_sae": ("seed",),
    "baselines": ("seed",),
    "select": ("base", "tuned", "trained", "near", "seed"),
    "intervene": ("base", "tuned", "trained", "force_prefix", "near", "seed"),
}


def _shared(data: dict[str, Any]) -> dict[str, Any]:
    tasks = data.get("tasks", {})
    values = {name: data[name] for name in ("base", "tuned", "near", "seed") if name in data}
    if isinstance(tasks, dict):
        values |= {name: tasks[name] for name in ("trained", "force_prefix") if name in tasks}
    result = dict(data)
    for section, names in _SHARES.items():
        own = data.get(section, {})
        if isinstance(own, dict):
            result[section] = {name: values[name] for name in names if name in values} | own
    return result


class Run:
    """The stages of one run folder; each can be called alone, and reads what the earlier ones wrote."""

    def __init__(self, config: RunConfig, folder: Path | str, *, force: bool = False, trust_remote_code: bool = False):
        self.config = config
        self.folder = Path(folder)
        self.force = force
        self.trust_remote_code = trust_remote_code
        self._family: ModelFamily | None = None

    @property
    def family(self) -> ModelFamily:
        """All models of the run."""
        if self._family is None:
            self._family = self.config.family(trust_remote_code=self.trust_remote_code)
        return self._family

    def check(self) -> None:
        """Everything that can be found wrong before any work: models, tasks, prompts, names, sites.

        Raises:
            MechprobeError: The first thing that is wrong.
        """
        from mechprobe.data.sources import as_prompts

        _ = self.family
        tasks = self.config.load_tasks()
        as_prompts(self.config.prompt_source())
        if self.config.intervene.collateral_file:
            as_prompts(self.config.intervene.collateral_file)
        for name in (self.config.base, self.config.tuned, *(self.config.near or ())):
            _ = self.family[name]
        for site in self.config.cache.sites:
            Site.parse(site).check(self.family.n_layers)
        for spec in (self.config.select.rule, self.config.intervene.features or self.config.select.rule):
            check_spec(spec)
        PositionRule.parse(self.config.intervene.positions)
        check_lengths(self.family, tasks, prefix=self.config.tasks.force_prefix)

    def save_config(self) -> None:
        """Keep the resolved configuration in the run folder, where the stage commands find it."""
        write_json(self.folder / RUN_FILE, self.config._given)

    def localize(self) -> SiteCeilings:
        """Sufficiency and necessity of every site, on the halves that select: the others judge the interventions."""
        tasks = [selecting for selecting, _ in self.halves()]
        return localize(self.family, tasks, out=self.folder / LOCALIZE, config=self.config.localize, force=self.force)

    def site(self) -> str:
        """The site in use: the configured one, else the one that `localize` chose."""
        if self.config.cache.sites:
            return self.config.cache.sites[0]
        return SiteCeilings.load(self.folder / LOCALIZE).chosen

    def cache(self) -> "ActivationStore":
        """Residual streams of every model on the same tokens; in modes ``stream`` and ``ring`` the kept part."""
        from mechprobe.activations import cache_activations

        return cache_activations(
            self.family,
            self.config.prompt_source(),
            list(self.config.cache.sites) or [self.site()],
            self.folder / CACHE,
            self.config.cache,
            kept=self.config.train_sae.kept,
            force=self.force,
        )

    def train_sae(self) -> "Crosscoder":
        """One crosscoder over all models."""
        from mechprobe.activations import train_crosscoder

        settings = self.config.train_sae
        store = settings.source(self.folder / CACHE, lambda: self.family, self.folder / CROSSCODER)
        shape, schedule = settings.resolve(store)
        return train_crosscoder(
            store,
            shape,
            schedule,
            self.folder / CROSSCODER,
            site=None if settings.sites else settings.site or self.site(),
            device=self.config.device,
            pool_rows=settings.pool_rows,
            force=self.force,
        )

    def features(self) -> "FeatureAnalysis":
        """Feature table, quality gate, examples."""
        from mechprobe.features.stage import analyze_features

        return analyze_features(
            self.folder / CROSSCODER,
            self.folder / CACHE,
            out=self.folder / FEATURES,
            family=self.family,
            config=self.config.features,
            device=self.config.device,
            force=self.force,
        )

    def baselines(self) -> dict[str, Any]:
        """An SAE of each model beside the crosscoder's slice; no part of the chain, for the comparison table."""
        from mechprobe.features.baselines import measure_baselines

        return measure_baselines(
            self.folder / CROSSCODER,
            self.folder / CACHE,
            out=self.folder / BASELINES,
            family=self.family,
            config=self.config.baselines,
            features=self.config.features,
            device=self.config.device,
            force=self.force,
        )

    def evaluate(self) -> Outcomes:
        """Outcomes of every model on every sample."""
        tasks = self.config.load_tasks()
        return evaluate_outcomes(self.family, tasks, self.folder / EVALS, self.config.evaluate, force=self.force)

    def evaluation_halves(self, seed: int | None = None) -> list[Task]:
        """The samples of each task that never select: what the interventions are measured on."""
        return [judging for _, judging in self.halves(seed)]

    def halves(self, seed: int | None = None) -> list[tuple[Task, Task]]:
        """``(selection, evaluation)`` halves of every task's evaluated samples, drawn by ``select.seed`` for None."""
        evaluated = (task.take(self.config.evaluate.n_per_task) for task in self.config.load_tasks())
        return [split_halves(task, seed=self.config.select.seed if seed is None else seed) for task in evaluated]

    def judging_halves(self, selection: Path | str | None = None) -> list[Task]:
        """The samples that a finished selection (the run's own for None) left for judging it, whatever the seed is now."""
        folder = self.folder / SELECTION if selection is None else selection
        return self.evaluation_halves(read_manifest(folder)["config"].get("seed"))

    def selection_folder(self, selection: Path | str | None = None) -> Path:
        """Where a selection is: the run's own for None.

        Raises:
            ArtifactError: The folder is no finished selection, or one of other outcomes than this run's.
        """
        if selection is None:
            return self.folder / SELECTION
        check_selection_folder(Path(selection), self.folder / EVALS)
        return Path(selection)

    def select(self, out: Path | None = None) -> Selection:
        """Generalization features, from the selection halves."""
        held_out = {task.name: [sample.id for sample in task.samples] for task in self.evaluation_halves()}
        return select_features(
            self.crosscoder(),
            self.family,
            load_outcomes(self.folder / EVALS),
            site=self.trained_site(),
            out=out or self.folder / SELECTION,
            config=self.config.select,
            held_out=held_out,
            table=self.table(),
            inputs={"crosscoder": self.folder / CROSSCODER, "evals": self.folder / EVALS},
            force=self.force,
        )

    def examples(self, features: Sequence[int] | None = None) -> Path:
        """Contexts and promoted tokens of features, for the report.

        Args:
            features: Ids, in the order wanted, kept in ``examples_chosen/``; None takes the first `N_EXPLAINED` of the
                selection, kept in ``examples/``.

        Returns:
            The stage folder, with ``examples.json``; `report` makes ``report/examples.html`` of all of them.
        """
        from mechprobe.features.stage import explain_features

        chosen = Selection.load(self.folder / SELECTION).features[:N_EXPLAINED] if features is None else features
        return explain_features(
            tuple(chosen),
            crosscoder=self.folder / CROSSCODER,
            cache=self.folder / CACHE,
            features=self.folder / FEATURES,
            family=self.family,
            out=self.folder / (EXAMPLES if features is None else CHOSEN_EXAMPLES),
            config=self.config.features,
            device=self.config.device,
        )

    def label(self, labeler: "Labeler", *, name: str | None = None) -> "Labels":
        """Labels for every feature that has examples, asked of a function of yours and kept in ``labels.json``.

        Args:
            labeler: From an entry of ``examples.json`` to a label.
            name: Of the labeler; its function's name when None.

        Raises:
            LabelError: The labeler failed; what it labelled before is kept, and the next call goes on there.
            ArtifactError: There are no examples, or the file holds labels of another labeler.
        """
        from mechprobe.features.labels import LABELS_FILE, label_features
        from mechprobe.report.run_files import read_examples

        examples = read_examples(self.folder)
        if not examples:
            raise ArtifactError(f"{self.folder} holds no examples; run `mechprobe features` with the models first.")
        return label_features(examples.values(), labeler, name=name, out=self.folder / LABELS_FILE)

    def intervene(self, out: Path | None = None, *, selection: Path | str | None = None) -> InterventionResults:
        """Ablate, amplify, transplant, with controls and ceilings.

        Args:
            out: Stage folder; ``interventions/`` of the run for None.
            selection: Folder that `select` wrote beside the run's own, which None takes.
        """
        given = self._intervention(selection)
        return intervene(**given, out=out or self.folder / INTERVENTIONS, force=self.force)

    def _intervention(self, selection: Path | str | None) -> dict[str, Any]:
        """What `intervene` is given."""
        about = self._edited(selection)
        tasks = self.judging_halves(about["inputs"]["selection"])
        return {**about, "tasks": tasks, "collateral": self.collateral_texts()}

    def _edited(self, selection: Path | str | None) -> dict[str, Any]:
        """Models, dictionary, features and settings of the edits."""
        folder = self.selection_folder(selection)
        return {
            "family": self.family,
            "crosscoder": self.crosscoder(),
            "selection": Selection.load(folder),
            "config": self.config.intervene,
            "table": self.table(),
            "inputs": {"crosscoder": self.folder / CROSSCODER, "selection": folder},
        }

    def collateral_texts(self) -> CollateralTexts | None:
        """Held-out prompts of the run for the collateral; None where a file is set, none is wanted, or there is no store."""
        settings = self.config.intervene
        if settings.collateral_file or not settings.collateral_texts or not (self.folder / CACHE / MANIFEST).is_file():
            return None
        from mechprobe.activations.store import ActivationStore

        store = ActivationStore.open(self.folder / CACHE)
        return texts_of_store(store, self.config.load_tasks(), self.family.tokenizer, settings.collateral_texts)

    def intervention_plan(self, out: Path | None = None, *, selection: Path | str | None = None) -> str:
        """How many conditions and samples `intervene` would run; what it would refuse before a model is loaded is refused."""
        work = prepare(**self._intervention(selection))
        Stage.check(out or self.folder / INTERVENTIONS, **work.stage, force=self.force)
        chosen, n = work.runner.selection, sum(len(task.samples) for task in work.runner.tasks)
        note = f" ({chosen.note})" if chosen.note else ""
        text = f"{len(chosen.features)} features{note}: {len(work.conditions)} conditions × {n} samples; nothing was written."
        return " ".join([text, *filter(None, [silence(chosen.features, chosen.scores).get("sentence")])])

    def harness(
        self,
        tasks: Sequence[str | Path],
        out: Path | None = None,
        settings: "HarnessConfig | None" = None,
        *,
        selection: Path | str | None = None,
    ) -> "HarnessResults":
        """Tasks of lm-evaluation-harness, clean and under the edits of the selection (the run's own for None)."""
        from mechprobe.interventions.harness import evaluate_harness

        given = self._edited(selection)
        return evaluate_harness(
            **given, tasks=tasks, out=out or self.folder / HARNESS, harness=settings, force=self.force
        )

    def harness_plan(
        self,
        tasks: Sequence[str | Path],
        settings: "HarnessConfig",
        out: Path | None = None,
        *,
        selection: Path | str | None = None,
    ) -> str:
        """How many conditions `harness` would run on which tasks; what it would refuse before a model is loaded is refused."""
        from mechprobe.interventions.harness import prepare_harness

        work = prepare_harness(**self._edited(selection), tasks=tasks, harness=settings)
        Stage.check(out or self.folder / HARNESS, **work.stage, force=self.force)
        return f"{len(work.conditions)} conditions × {', '.join(work.tasks.names)}; nothing was written."

    def report(self) -> Path:
        """The report page."""
        from mechprobe.report import report

        if (self.folder / SELECTION / MANIFEST).is_file() and (self.folder / FEATURES / MANIFEST).is_file():
            self.examples()
        return report(self.folder)

    def crosscoder(self) -> "Crosscoder":
        """The trained crosscoder, on the run's device."""
        from sae_training import Crosscoder

        read_manifest(self.folder / CROSSCODER)
        return Crosscoder.load(self.folder / CROSSCODER, self.config.device)

    def trained_site(self) -> str:
        """The site that the crosscoder was trained at, from its manifest."""
        config = read_manifest(self.folder / CROSSCODER)["config"]
        site = config.get("site")
        if config.get("sites"):
            self.crosscoder().require_one_site()
        if not isinstance(site, str):
            raise ArtifactError(
                f"{self.folder / CROSSCODER} does not say its site; train it with `mechprobe train-sae`."
            )
        return site

    def table(self) -> Any:
        """The feature table as a pandas frame, or None where the features stage has not run."""
        if not (self.folder / FEATURES / "manifest.json").is_file():
            return None
        from mechprobe.features.table import FeatureTable

        return FeatureTable.load(self.folder / FEATURES).to_pandas()

    def stages(self) -> list[tuple[str, Callable[[], Any]]]:
        """Name and function of every stage, in order."""
        functions = (
            self.localize, self.cache, self.train_sae, self.features, self.evaluate, self.select, self.intervene,
            self.report,
        )  # fmt: skip
        return list(zip(STAGES, functions, strict=True))
