"""What a run folder holds: the result files of each stage, and which stages are missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import ArtifactError
from mechprobe.features.examples.labels import LABELS_FILE, Labels
from mechprobe.files import read_json
from mechprobe.records import read_jsonl
from mechprobe.stage_folder import MANIFEST, UNFINISHED


@dataclass(frozen=True)
class StageInfo:
    """One stage of a run as the report sees it.

    Attributes:
        name: Name of the stage.
        folder: Where it lies in the run folder.
        command: What makes it.
        state: ``done``, ``unfinished`` or ``missing``.
        manifest: Its manifest, empty unless done.
    """

    name: str
    folder: str
    command: str
    state: str
    manifest: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether the stage has a manifest."""
        return self.state == "done"


STAGES = (
    ("localize", "localize", "mechprobe localize"),
    ("cache", "cache", "mechprobe cache"),
    ("train-sae", "crosscoder", "mechprobe train-sae"),
    ("features", "features", "mechprobe features"),
    ("evaluate", "evals", "mechprobe evaluate"),
    ("select", "selection", "mechprobe select"),
    ("intervene", "interventions", "mechprobe intervene"),
)
"""Name, place in the run folder, and command of every stage a report shows."""


@dataclass(frozen=True)
class RunFiles:
    """The parsed result files of a run; None stands for a file that is not there.

    Attributes:
        run_dir: The run folder.
        stages: By name, in the order of the flow.
        ceilings: ``localize/ceilings.json``.
        training: Lines of ``crosscoder/metrics.jsonl``.
        crosscoder: ``crosscoder/config.json``.
        features: ``features/summary.json``.
        quality: ``features/quality.json``.
        nulls: Sentences of the finished nulls in ``nulls/``, by name, and of further seeds.
        examples: Feature id to its entry in ``examples.json`` of ``features/``, ``examples/`` or ``examples_chosen/``.
        labels: ``labels.json``: what a labeler of the user's said of the examples.
        evaluation: ``evals/summary.json``.
        selection: ``selection.json``, at the top or in ``selection/``.
        interventions: ``interventions/results.json``.
        run: ``run.json``: ``name``, ``question``, ``notes`` that the pipeline wants shown.
    """

    run_dir: Path
    stages: dict[str, StageInfo]
    ceilings: dict[str, Any] | None
    training: list[dict[str, Any]]
    crosscoder: dict[str, Any] | None
    features: dict[str, Any] | None
    quality: dict[str, Any] | None
    nulls: dict[str, dict[str, Any]]
    examples: dict[int, dict[str, Any]]
    labels: Labels | None
    evaluation: dict[str, Any] | None
    selection: dict[str, Any] | None
    interventions: dict[str, Any] | None
    run: dict[str, Any]

    @classmethod
    def read(cls, run_dir: Path | str) -> "RunFiles":
        """Read what is there.

        Raises:
            ArtifactError: The folder does not exist, or none of the stages is in it.
        """
        run_dir = Path(run_dir)
        if not run_dir.is_dir():
            raise ArtifactError(f"{run_dir} does not exist; give the folder that `mechprobe run --out` wrote.")
        stages = {name: _stage(run_dir, name, place, command) for name, place, command in STAGES}
        if not any(stage.done for stage in stages.values()):
            raise ArtifactError(f"{run_dir} holds no finished stage; run `mechprobe run --out {run_dir}` first.")
        return cls(
            run_dir=run_dir,
            stages=stages,
            ceilings=_optional(run_dir / "localize" / "ceilings.json"),
            training=_lines(run_dir / "crosscoder" / "metrics.jsonl"),
            crosscoder=_optional(run_dir / "crosscoder" / "config.json"),
            features=_optional(run_dir / "features" / "summary.json"),
            quality=_optional(run_dir / "features" / "quality.json"),
            nulls=_nulls(run_dir / "nulls"),
            examples=read_examples(run_dir),
            labels=Labels.load(run_dir / LABELS_FILE) if (run_dir / LABELS_FILE).is_file() else None,
            evaluation=_optional(run_dir / "evals" / "summary.json"),
            selection=_optional(run_dir / "selection.json") or _optional(run_dir / "selection" / "selection.json"),
            interventions=_optional(run_dir / "interventions" / "results.json"),
            run=_optional(run_dir / "run.json") or {},
        )

    @property
    def base(self) -> str:
        """Name of the model that the others are compared with."""
        for source in (self.features, self.ceilings, self.interventions):
            if source:
                return source["base"] if "base" in source else source.get("pair", ["base"])[0]
        return "base"

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order in which the stages ran them (JSON objects are sorted by name)."""
        listed = [source["tasks"] for source in (self.interventions, self.ceilings) if source and "tasks" in source]
        found = [task for tasks in listed for task in tasks]
        if self.evaluation:
            found += [task for tasks in self.evaluation["accuracy"].values() for task in tasks]
        return list(dict.fromkeys(found))

    @property
    def models(self) -> list[str]:
        """Base first, then the models of the crosscoder in its order, then the others."""
        found = [self.base, *(self.features or {}).get("models", [])]
        evaluated = (self.evaluation or {}).get("accuracy", {})
        found += sorted(evaluated, key=lambda name: (not name.startswith("sft"), name))
        return list(dict.fromkeys(found))

    @property
    def missing(self) -> list[StageInfo]:
        """Stages that are not done, in the order of the flow."""
        return [stage for stage in self.stages.values() if not stage.done]


def _stage(run_dir: Path, name: str, place: str, command: str) -> StageInfo:
    path = run_dir / place
    if (run_dir / f"{place}.json").is_file() and not path.is_dir():  # a result without a stage folder
        return StageInfo(name, f"{place}.json", command, "done", {})
    if (path / MANIFEST).is_file():
        return StageInfo(name, place, command, "done", _optional(path / MANIFEST) or {})
    state = "unfinished" if (path / UNFINISHED).is_file() else "missing"
    return StageInfo(name, place, command, state, {})


def _optional(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is no JSON object; make its stage again with --force.")
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    return [item for _, item in read_jsonl(path)] if path.is_file() else []


def _nulls(folder: Path) -> dict[str, dict[str, Any]]:
    found = {path.parent.name: _optional(path) for path in sorted(folder.glob("*/null.json"))}
    found |= {path.parent.name: _optional(path) for path in sorted(folder.glob("*/stability.json"))}
    return {name: value for name, value in found.items() if value and (folder / name / "manifest.json").is_file()}


def read_examples(run_dir: Path | str) -> dict[int, dict[str, Any]]:
    """Feature id to its contexts, from every place of a run folder that holds some."""
    found: dict[int, dict[str, Any]] = {}
    for folder in ("features", "examples", "examples_chosen"):
        value = _optional(Path(run_dir) / folder / "examples.json") or {}
        found |= {int(entry["feature"]): entry for entry in value.get("features", [])}
    return found
