"""The result files in a run folder, and which stages are missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import ArtifactError
from mechprobe.evals.result import EvaluationSummary
from mechprobe.features.examples.labels import Labels
from mechprobe.files import read_json
from mechprobe.records import read_jsonl
from mechprobe.run_layout import CHAIN, RunLayout, StagePlace
from mechprobe.stage_folder import MANIFEST, UNFINISHED


@dataclass(frozen=True)
class StageInfo:
    """One stage of a run.

    Attributes:
        place: Its name, folder and command.
        state: ``done``, ``unfinished`` or ``missing``.
        manifest: Its manifest; empty unless done.
    """

    place: StagePlace
    state: str
    manifest: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether the stage is finished."""
        return self.state == "done"


@dataclass(frozen=True)
class RunFiles:
    """The parsed result files of a run. A file that does not exist is None or empty.

    Attributes:
        layout: Paths in the run folder.
        stages: Stages by name, in the order of the pipeline.
        ceilings: ``localize/ceilings.json``.
        training: Lines of ``crosscoder/metrics.jsonl``.
        crosscoder: ``crosscoder/config.json``.
        features: ``features/summary.json``.
        quality: ``features/quality.json``.
        nulls: Results of the finished null comparisons and of further seeds, by name.
        examples: Entries of every ``examples.json``, by feature id.
        labels: ``labels.json``, labels that a function of the user gave to the examples.
        evaluation: ``evals/summary.json``.
        selection: ``selection/selection.json``.
        interventions: ``interventions/results.json``.
        run: ``run.json``; the report uses ``name``, ``notes`` and ``report``.
    """

    layout: RunLayout
    stages: dict[str, StageInfo]
    ceilings: dict[str, Any] | None
    training: list[dict[str, Any]]
    crosscoder: dict[str, Any] | None
    features: dict[str, Any] | None
    quality: dict[str, Any] | None
    nulls: dict[str, dict[str, Any]]
    examples: dict[int, dict[str, Any]]
    labels: Labels | None
    evaluation: EvaluationSummary | None
    selection: dict[str, Any] | None
    interventions: dict[str, Any] | None
    run: dict[str, Any]

    @classmethod
    def read(cls, run_dir: Path | str) -> "RunFiles":
        """Read the files that exist.

        Raises:
            ArtifactError: The folder does not exist, contains no finished stage, or contains an unreadable file.
        """
        layout = RunLayout(Path(run_dir))
        if not layout.folder.is_dir():
            raise ArtifactError(f"{run_dir} does not exist; give the folder of `mechprobe run`.")
        stages = {place.name: _stage(layout, place) for place in CHAIN if place.name != "report"}
        if not any(stage.done for stage in stages.values()):
            raise ArtifactError(f"{run_dir} contains no finished stage; run `mechprobe run --run {run_dir}` first.")
        training, labels, accuracy = layout.training_log, layout.labels, layout.accuracy
        return cls(
            layout=layout,
            stages=stages,
            ceilings=_optional(layout.ceilings),
            training=[line for _, line in read_jsonl(training)] if training.is_file() else [],
            crosscoder=_optional(layout.crosscoder / "config.json"),
            features=_optional(layout.feature_summary),
            quality=_optional(layout.quality),
            nulls=_nulls(layout.nulls),
            examples=read_examples(layout),
            labels=Labels.load(labels) if labels.is_file() else None,
            evaluation=EvaluationSummary.load(accuracy) if accuracy.is_file() else None,
            selection=_optional(layout.selected),
            interventions=_optional(layout.results),
            run=_optional(layout.run_file) or {},
        )

    @property
    def name(self) -> str:
        """Name of the run; the name of its folder if ``run.json`` has none."""
        return str(self.run.get("name") or self.layout.folder.resolve().name)

    @property
    def trusted(self) -> bool:
        """Whether the crosscoder passed the quality gate."""
        return bool(self.quality and self.quality["trusted"])

    @property
    def base(self) -> str:
        """Name of the model before post-training."""
        if self.features:
            return self.features["base"]
        for source in (self.ceilings, self.interventions):
            if source:
                return source["pair"][0]
        return "base"

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order in which the stages ran them; JSON objects are sorted by name."""
        listed = [source["tasks"] for source in (self.interventions, self.ceilings) if source]
        found = [task for tasks in listed for task in tasks]
        return list(dict.fromkeys([*found, *(self.evaluation.tasks if self.evaluation else ())]))

    @property
    def models(self) -> list[str]:
        """The base, then the models of the crosscoder in its order, then all others."""
        found = [self.base, *(self.features or {}).get("models", [])]
        evaluated = self.evaluation.accuracy if self.evaluation else {}
        found += sorted(evaluated, key=lambda name: (not name.startswith("sft"), name))
        return list(dict.fromkeys(found))

    @property
    def selected(self) -> list[int]:
        """Ids of the selected features, best first."""
        return [int(feature) for feature in (self.selection or {}).get("features", [])]

    @property
    def missing(self) -> list[StageInfo]:
        """Stages that are not finished, in the order of the pipeline."""
        return [stage for stage in self.stages.values() if not stage.done]


def _stage(layout: RunLayout, place: StagePlace) -> StageInfo:
    path = layout.folder / place.folder
    if (path / MANIFEST).is_file():
        return StageInfo(place, "done", _optional(path / MANIFEST) or {})
    return StageInfo(place, "unfinished" if (path / UNFINISHED).is_file() else "missing", {})


def _optional(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is not a JSON object; run its stage again with --force.")
    return value


def _nulls(folder: Path) -> dict[str, dict[str, Any]]:
    paths = [*sorted(folder.glob("*/null.json")), *sorted(folder.glob("*/stability.json"))]
    found = {path.parent.name: _optional(path) for path in paths if (path.parent / MANIFEST).is_file()}
    return {name: value for name, value in found.items() if value}


def read_examples(layout: RunLayout) -> dict[int, dict[str, Any]]:
    """Example contexts by feature id, from every stage of a run that has some. Later stages replace earlier entries."""
    found: dict[int, dict[str, Any]] = {}
    for folder in (layout.features, layout.examples, layout.chosen_examples):
        value = _optional(folder / "examples.json") or {}
        found |= {int(entry["feature"]): entry for entry in value.get("features", [])}
    return found
