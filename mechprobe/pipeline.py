"""``mechprobe run``: the chain from localize to report, in one run folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ArtifactError
from mechprobe.evals.stage import check_lengths, evaluate_outcomes, load_outcomes
from mechprobe.evals.tasks import Task, split_halves
from mechprobe.files import write_json
from mechprobe.interventions.collateral import CollateralTexts, texts_of_store
from mechprobe.interventions.hooks.positions import PositionRule
from mechprobe.interventions.stage import InterventionResults, intervene, prepare
from mechprobe.localization.stage import SiteCeilings, localize
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes
from mechprobe.run_config import RUN_FILE, RunConfig
from mechprobe.selection.checks import check_selection_folder
from mechprobe.selection.never_active import silence
from mechprobe.selection.rules import check_spec
from mechprobe.selection.stage import Selection, select_features
from mechprobe.stage_folder import MANIFEST, Stage, read_manifest
from mechprobe.types import Site

if TYPE_CHECKING:
    from mechprobe.cache.store.activation_store import ActivationStore
    from mechprobe.evals.harness import HarnessConfig
    from mechprobe.features.examples.labels import Labeler, Labels
    from mechprobe.features.stage import FeatureAnalysis
    from mechprobe.interventions.harness import HarnessResults
    from sae_training import Crosscoder

LOCALIZE, CACHE, CROSSCODER, FEATURES = "localize", "cache", "crosscoder", "features"
EVALS, SELECTION, INTERVENTIONS, REPORT = "evals", "selection", "interventions", "report"
EXAMPLES, CHOSEN_EXAMPLES, BASELINES, HARNESS = "examples", "examples_chosen", "baselines", "harness"
N_EXPLAINED = 12
STAGES = ("localize", "cache", "train-sae", "features", "evaluate", "select", "intervene", "report")


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
        from mechprobe.cache.stage import cache_activations

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
        from mechprobe.dictionary.stage import train_crosscoder

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
        from mechprobe.dictionary.baselines.stage import measure_baselines

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
        from mechprobe.features.examples.labels import LABELS_FILE, label_features
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
        from mechprobe.cache.store.activation_store import ActivationStore

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
        from mechprobe.report.stage import report

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
        from mechprobe.features.table.feature_table import FeatureTable

        return FeatureTable.load(self.folder / FEATURES).to_pandas()

    def stages(self) -> list[tuple[str, Callable[[], Any]]]:
        """Name and function of every stage, in order."""
        functions = (
            self.localize, self.cache, self.train_sae, self.features, self.evaluate, self.select, self.intervene,
            self.report,
        )  # fmt: skip
        return list(zip(STAGES, functions, strict=True))
