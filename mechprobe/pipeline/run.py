"""`Run`: every stage of a run folder, each reading what the earlier ones wrote."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.data.sources import as_prompts
from mechprobe.dictionary.stage import train_crosscoder
from mechprobe.errors import ArtifactError, ConfigError, InputError
from mechprobe.evals.config import HarnessConfig
from mechprobe.evals.stage import check_lengths, check_source, evaluate_outcomes, load_outcomes
from mechprobe.evals.tasks import Task, split_tasks
from mechprobe.features.contexts.stage import collect_contexts
from mechprobe.features.examples.labels import Labeler, Labels, label_features
from mechprobe.features.stage import FeatureAnalysis, analyze_features, explain_features
from mechprobe.features.table.feature_table import FeatureTable, require_table_packages
from mechprobe.interventions.collateral import CollateralTexts, texts_of_store
from mechprobe.interventions.hooks.positions import PositionRule
from mechprobe.interventions.result import InterventionResults
from mechprobe.interventions.stage import intervene
from mechprobe.localization.result import SiteCeilings
from mechprobe.localization.stage import localize
from mechprobe.pipeline.side_stages import SideStages
from mechprobe.progress import activity, loading
from mechprobe.ranks import Ranks
from mechprobe.records import Outcomes
from mechprobe.run_config import write_run_file
from mechprobe.run_layout import CHAIN
from mechprobe.selection.checks import check_selection_folder
from mechprobe.selection.result import Selection
from mechprobe.selection.rules import check_spec
from mechprobe.selection.stage import select_features
from mechprobe.stage_folder import MANIFEST, read_manifest
from mechprobe.types import Site
from sae_training import Crosscoder

if TYPE_CHECKING:
    from mechprobe.interventions.harness.result import HarnessResults

N_EXPLAINED = 12
"""Selected features whose contexts the report shows."""


class Run(SideStages):
    """The stages of one run folder, or of a `RunLayout` with some folders elsewhere; ``force`` makes finished ones again."""

    def check(self) -> None:
        """Check models, tasks, prompts, names and sites before any work begins.

        Raises:
            MechprobeError: The first problem found.
        """
        require_table_packages()
        _ = self.family
        with loading("tasks and prompts"):
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
        with activity("checking the lengths of prompts"):
            check_lengths(self.family, tasks, prefix=self.config.tasks.force_prefix)
        if not (self.layout.evals / MANIFEST).is_file():
            check_source(self.family, tasks, self.config.evaluate)

    def save_config(self) -> None:
        """Write the settings, as given, into the run folder, where later commands find them."""
        write_run_file(self.folder, self.config.given)

    def localize(self) -> SiteCeilings:
        """Measure sufficiency and necessity of every site, on the samples that also select features."""
        pair = self.family.subset(self.config.localize.base, self.config.localize.tuned)
        check_lengths(pair, self.config.load_tasks(), prefix=self.config.tasks.force_prefix)
        tasks = [selecting for selecting, _ in self.halves()]
        empty = [task.name for task in tasks if not task.samples]
        if empty:
            raise InputError(f"Task {empty[0]} has no sample in the half that selects; give it more samples.")
        return localize(pair, tasks, out=self.layout.localize, config=self.config.localize, force=self.force)

    def sites(self) -> list[str]:
        """The configured sites, or the one that `localize` chose.

        Raises:
            ConfigError: Neither is there.
        """
        if self.config.cache.sites:
            return list(self.config.cache.sites)
        if not (self.layout.localize / MANIFEST).is_file():
            raise ConfigError(
                "No site is given; write --sites resid_post.N, or give tasks, on which localize chooses one."
            )
        return [SiteCeilings.load(self.layout.localize).chosen]

    def cache(self, ranks: Ranks | None = None) -> ActivationStore:
        """Record the residual streams of every model; in the modes ``stream`` and ``ring`` only the kept subset.

        Args:
            ranks: The processes that make the store together; None for one process.
        """
        return cache_activations(
            self.family,
            self.config.prompt_source(),
            self.sites(),
            self.layout.cache,
            self.config.cache,
            kept=self.config.train_sae.kept,
            force=self.force,
            ranks=ranks,
        )

    def train_sae(self) -> Crosscoder:
        """Train one crosscoder over all models."""
        settings = self.config.train_sae
        store = settings.source(self.layout.cache, lambda: self.family, self.layout.crosscoder)
        shape, schedule = settings.resolve(store)
        first = next(iter(self.config.cache.sites), None)
        return train_crosscoder(
            store,
            shape,
            schedule,
            self.layout.crosscoder,
            site=None if settings.sites else settings.site or first,
            device=self.config.device,
            pool_rows=settings.pool_rows,
            force=self.force,
        )

    def features(self) -> FeatureAnalysis:
        """Compute feature table, quality gate and examples; without models, only the parts that need none."""
        return analyze_features(
            self.layout.crosscoder,
            self.layout.cache,
            out=self.layout.features,
            family=self.family if self.config.models else None,
            config=self.config.features,
            device=self.config.device,
            force=self.force,
        )

    def evaluate(self) -> Outcomes:
        """Score every model on every sample."""
        tasks = self.config.load_tasks()
        return evaluate_outcomes(self.family, tasks, self.layout.evals, self.config.evaluate, force=self.force)

    def evaluation_halves(self, seed: int | None = None) -> list[Task]:
        """The samples of each task that never select features: interventions are measured on them."""
        return [judging for _, judging in self.halves(seed)]

    def halves(self, seed: int | None = None) -> list[tuple[Task, Task]]:
        """``(selection, evaluation)`` halves of every task's evaluated samples; None splits by ``select.seed``."""
        tasks = (task.take(self.config.evaluate.n_per_task) for task in self.config.load_tasks())
        return split_tasks(list(tasks), seed=self.config.select.seed if seed is None else seed)

    def judging_halves(self) -> list[Task]:
        """The evaluation halves of the finished selection, whose seed may differ from ``select.seed``."""
        return self.evaluation_halves(read_manifest(self.layout.selection)["config"].get("seed"))

    def held_out(self) -> dict[str, list[str]]:
        """Task → samples that must not select, because they judge."""
        return {task.name: [sample.id for sample in task.samples] for task in self.evaluation_halves()}

    def select(self) -> Selection:
        """Select generalization features, on the selection halves."""
        return select_features(
            self.crosscoder(),
            self.family,
            load_outcomes(self.layout.evals),
            site=self.trained_site(),
            out=self.layout.selection,
            config=self.config.select,
            held_out=self.held_out(),
            table=self.table(),
            inputs={"crosscoder": self.layout.crosscoder, "evals": self.layout.evals},
            force=self.force,
        )

    def examples(self, features: Sequence[int] | None = None) -> Path:
        """Write ``examples.json``: contexts and promoted tokens of features, which `report` shows on a page.

        Args:
            features: Feature ids, kept in ``examples_chosen/``. None takes the first `N_EXPLAINED` of the selection,
                kept in ``examples/``.
        """
        chosen = Selection.load(self.layout.selection).features[:N_EXPLAINED] if features is None else features
        return explain_features(
            tuple(chosen),
            crosscoder=self.layout.crosscoder,
            cache=self.layout.cache,
            features=self.layout.features,
            family=self.family,
            out=self.layout.examples if features is None else self.layout.chosen_examples,
            config=self.config.features,
            device=self.config.device,
        )

    def contexts(self) -> Path | None:
        """Write contexts and promoted tokens of every live feature to ``contexts/``, which the explorer shows.

        None without models, whose tokenizer and unembeddings are needed.
        """
        if not self.config.models:
            return None
        return collect_contexts(
            crosscoder=self.layout.crosscoder,
            cache=self.layout.cache,
            features=self.layout.features,
            family=self.family,
            out=self.layout.contexts,
            config=self.config.features,
            device=self.config.device,
        )

    def label(self, labeler: Labeler, *, name: str | None = None) -> Labels:
        """Label every feature that has examples with your function, and keep the labels in ``labels.json``.

        Args:
            labeler: Takes an entry of ``examples.json`` and returns a label.
            name: Name of the labeler; None takes the name of the function.

        Raises:
            LabelError: The labeler failed. Earlier labels are kept, and the next call continues after them.
            ArtifactError: There are no examples, or the file holds labels of another labeler.
        """
        from mechprobe.report.run_files import read_examples

        examples = read_examples(self.layout)
        if not examples:
            raise ArtifactError(f"{self.folder} holds no examples; run `mechprobe features` with the models first.")
        return label_features(examples.values(), labeler, name=name, out=self.layout.labels)

    def intervene(self) -> InterventionResults:
        """Ablate, amplify and transplant the selected features, with controls and ceilings."""
        return intervene(**self.intervention(), out=self.layout.interventions, force=self.force)

    def intervention(self) -> dict[str, Any]:
        """The arguments of `mechprobe.intervene` in this run."""
        return {**self.edits(), "tasks": self.judging_halves(), "collateral": self.collateral_texts()}

    def edits(self) -> dict[str, Any]:
        """Models, dictionary, features and settings of the edits, and the selection halves.

        Raises:
            ArtifactError: The selection is unfinished, or was made from other outcomes than this run's.
        """
        folder = self.layout.selection
        if folder != self.folder / "selection":
            check_selection_folder(folder, self.layout.evals)
        return {
            "family": self.family,
            "crosscoder": self.crosscoder(),
            "selection": Selection.load(folder),
            "config": self.config.intervene,
            "selecting": [first for first, _ in self.halves(read_manifest(folder)["config"].get("seed"))],
            "table": self.table(),
            "inputs": {"crosscoder": self.layout.crosscoder, "selection": folder},
        }

    def collateral_texts(self) -> CollateralTexts | None:
        """Held-out prompts of the run, on which collateral is measured.

        None where the settings name a file or no text, or where there is no store.
        """
        settings = self.config.intervene
        no_store = not (self.layout.cache / MANIFEST).is_file()
        if settings.collateral_file or not settings.collateral_texts or no_store:
            return None
        store = ActivationStore.open(self.layout.cache)
        return texts_of_store(store, self.config.load_tasks(), self.family, settings.collateral_texts)

    def harness(self, tasks: Sequence[str | Path], settings: "HarnessConfig | None" = None) -> "HarnessResults":
        """Run tasks of lm-evaluation-harness, clean and under the edits of the selection."""
        from mechprobe.interventions.harness.stage import evaluate_harness

        return evaluate_harness(
            **self.edits(), tasks=tasks, out=self.layout.harness, harness=settings, force=self.force
        )

    def report(self) -> Path:
        """Write the report and the feature explorer."""
        from mechprobe.report.stage import report

        if (self.layout.features / MANIFEST).is_file():
            self.contexts()
        if (self.layout.selection / MANIFEST).is_file() and (self.layout.features / MANIFEST).is_file():
            self.examples()
        return report(self.folder)

    def crosscoder(self) -> Crosscoder:
        """The trained crosscoder, on the run's device."""
        read_manifest(self.layout.crosscoder)
        return Crosscoder.load(self.layout.crosscoder, self.config.device)

    def trained_site(self) -> str:
        """The site that the crosscoder was trained at, from its manifest."""
        config = read_manifest(self.layout.crosscoder)["config"]
        if config.get("sites"):
            self.crosscoder().require_one_site()
        if not isinstance(config.get("site"), str):
            raise ArtifactError(
                f"{self.layout.crosscoder} does not record its site; train it with `mechprobe train-sae`."
            )
        return config["site"]

    def table(self) -> Any:
        """The feature table as a pandas frame; None where the features stage has not run."""
        if not (self.layout.features / MANIFEST).is_file():
            return None
        return FeatureTable.load(self.layout.features).to_pandas()

    def stages(self) -> list[tuple[str, Callable[[], Any]]]:
        """Name and function of every stage of the chain, in order."""
        functions = (
            self.localize, self.cache, self.train_sae, self.features, self.evaluate, self.select, self.intervene,
            self.report,
        )  # fmt: skip
        return [(place.name, function) for place, function in zip(CHAIN, functions, strict=True)]
