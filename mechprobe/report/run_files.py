"""The result files in a run folder, and which stages are missing."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mechprobe.drift.divergence.result import DivergenceResult
from mechprobe.drift.probe.result import ProbeResult
from mechprobe.drift.weights.result import WeightsResult
from mechprobe.dynamics.logprobs.result import LogprobsResult
from mechprobe.emergence.result import Emergence
from mechprobe.errors import ArtifactError
from mechprobe.evals.result import EvaluationSummary
from mechprobe.features.examples.labels import Labels
from mechprobe.files import read_json
from mechprobe.localization.result import SiteCeilings
from mechprobe.records import read_jsonl
from mechprobe.report.result import JsonObject, Section
from mechprobe.run_layout import CHAIN, RunLayout, StagePlace
from mechprobe.stage_folder import MANIFEST, UNFINISHED, read_manifest, recorded_hash


class StageInfo(NamedTuple):
    """One stage of a run."""

    place: StagePlace
    state: str
    """``done``, ``unfinished`` or ``missing``."""
    manifest: dict[str, Any]
    """Empty unless the stage is done."""


class DriftFiles(NamedTuple):
    """Results of the stages of behaviour and drift, which are beside the chain; None where a stage is not finished."""

    divergence: DivergenceResult | None
    probe: ProbeResult | None
    weights: WeightsResult | None

    @classmethod
    def read(cls, layout: RunLayout) -> "DriftFiles":
        """Read the finished stages of a run."""
        return cls(
            DivergenceResult.load(layout.drift) if _done(layout.drift) else None,
            ProbeResult.load(layout.probe) if _done(layout.probe) else None,
            WeightsResult.load(layout.weights) if _done(layout.weights) else None,
        )

    @property
    def folders(self) -> dict[str, Path]:
        """Stage → folder of what was read."""
        names = ("drift", "probe", "weights")
        return {name: found.folder for name, found in zip(names, self, strict=True) if found is not None}

    @property
    def base(self) -> str:
        """Name of the model that the others are compared with; empty if nothing was read."""
        return next((found.base for found in self if found is not None), "")


@dataclass(frozen=True)
class RunFiles:
    """The parsed result files of a run. A file that does not exist is None or empty."""

    layout: RunLayout
    stages: dict[str, StageInfo]
    """Stages by name, in the order of the pipeline."""
    ceilings: SiteCeilings | None
    training: list[JsonObject]
    """Lines of ``crosscoder/metrics.jsonl``."""
    crosscoder: JsonObject | None
    features: JsonObject | None
    quality: JsonObject | None
    nulls: dict[str, JsonObject]
    """Results of the finished null comparisons and of further seeds, by name."""
    examples: dict[int, JsonObject]
    """Entries of every ``examples.json``, by feature id."""
    labels: Labels | None
    evaluation: EvaluationSummary | None
    selection: JsonObject | None
    interventions: JsonObject | None
    dictionary_seeds: JsonObject | None
    """The verdict over several dictionaries."""
    drift: DriftFiles
    outdated: tuple[str, ...]
    """Files that were made from earlier versions of finished stages; they are not read."""
    run: JsonObject
    """``run.json``; the report uses ``name``, ``notes`` and ``report``."""

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
        drift = DriftFiles.read(layout)
        if not any(stage.manifest for stage in stages.values()) and not drift.folders:
            raise ArtifactError(f"{run_dir} contains no finished stage; run `mechprobe run --run {run_dir}` first.")
        training, labels, accuracy = layout.training_log, layout.labels, layout.accuracy
        seeds = layout.dictionary_seeds
        current = comparison_is_current(layout)
        return cls(
            layout=layout,
            stages=stages,
            ceilings=SiteCeilings.load(layout.localize) if stages["localize"].manifest else None,
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
            dictionary_seeds=_optional(seeds) if current else None,
            drift=drift,
            outdated=(str(seeds.relative_to(layout.folder)),) if seeds.is_file() and not current else (),
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
        if self.ceilings:
            return self.ceilings.pair[0]
        return self.interventions["pair"][0] if self.interventions else "base"

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order in which the stages ran them; JSON objects are sorted by name."""
        edited = self.interventions["tasks"] if self.interventions else ()
        others = (found.tasks for found in (self.ceilings, self.evaluation) if found)
        return list(dict.fromkeys(itertools.chain(edited, *others)))

    @property
    def models(self) -> list[str]:
        """The base, then the models of the crosscoder in its order, then all others."""
        evaluated = self.evaluation.accuracy if self.evaluation else {}
        others = sorted(evaluated, key=lambda name: (not name.startswith("sft"), name))
        return list(dict.fromkeys([self.base, *(self.features or {}).get("models", []), *others]))

    @cached_property
    def emergence(self) -> Emergence | None:
        """The features over training; None where that stage is not finished."""
        return Emergence.load(self.layout.emergence) if _done(self.layout.emergence) else None

    @cached_property
    def logprobs(self) -> LogprobsResult | None:
        """The log-probabilities of tokens; None where that stage is not finished."""
        return LogprobsResult.load(self.layout.logprobs) if _done(self.layout.logprobs) else None

    def absent(self, stage: str, name: str, title: str) -> Section:
        """The section ``name`` of a stage of the chain that is not finished."""
        found = self.stages[stage]
        return Section(id=name, title=title, command=found.place.command, interrupted=found.state == "unfinished")

    @property
    def selected(self) -> list[int]:
        """Ids of the selected features, best first."""
        return [int(feature) for feature in (self.selection or {}).get("features", [])]


def _done(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _stage(layout: RunLayout, place: StagePlace) -> StageInfo:
    path = layout.folder / place.folder
    if (path / MANIFEST).is_file():
        return StageInfo(place, "done", _optional(path / MANIFEST) or {})
    return StageInfo(place, "unfinished" if (path / UNFINISHED).is_file() else "missing", {})


def _optional(path: Path) -> JsonObject | None:
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is not a JSON object; run its stage again with --force.")
    return value


def comparison_is_current(layout: RunLayout) -> bool:
    """Whether there is a comparison of dictionaries, made from the interventions that the run holds now."""
    made, own = layout.dictionary_seeds.with_name(MANIFEST), layout.interventions / MANIFEST
    if not made.is_file() or not own.is_file():
        return False
    inputs = read_manifest(made.parent)["inputs"]
    return recorded_hash(read_manifest(own.parent)) in inputs.values()


def _nulls(folder: Path) -> dict[str, JsonObject]:
    paths = [*sorted(folder.glob("*/null.json")), *sorted(folder.glob("*/stability.json"))]
    found = {path.parent.name: _optional(path) for path in paths if (path.parent / MANIFEST).is_file()}
    return {name: value for name, value in found.items() if value}


def read_examples(layout: RunLayout) -> dict[int, JsonObject]:
    """Example contexts by feature id, from every stage of a run that has some. Later stages replace earlier entries."""
    found: dict[int, dict[str, Any]] = {}
    for folder in (layout.features, layout.examples, layout.chosen_examples):
        value = _optional(folder / "examples.json") or {}
        found |= {int(entry["feature"]): entry for entry in value.get("features", [])}
    return found
