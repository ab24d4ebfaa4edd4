"""From the result files of a run to its timeline. Every stage is optional."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechprobe.drift.divergence.result import DivergenceResult
from mechprobe.drift.probe.result import ProbeResult
from mechprobe.drift.weights.result import WeightsResult
from mechprobe.dynamics.logprobs.result import LogprobsResult
from mechprobe.dynamics.order import ALPHA, moved_first
from mechprobe.dynamics.result import Dynamics
from mechprobe.emergence.arms import Arm, all_arms, find_arms, with_recorded
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.result import Emergence
from mechprobe.errors import ConfigError
from mechprobe.evals.summary import FORCED
from mechprobe.report.config import Axis
from mechprobe.report.timeline.axis import model_folders, read_tokens
from mechprobe.report.timeline.behaviour import LENGTH, OUTCOMES_FILE, lengths_of_sweep, of_outcomes, of_probe, of_sweep
from mechprobe.report.timeline.inside import of_drift, of_emergence, of_weights
from mechprobe.report.timeline.log_probabilities import of_logprobs
from mechprobe.report.timeline.measured import N_DRAWS, Measured
from mechprobe.report.timeline.result import ArmTimeline, Dip, Series, Timeline
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import MANIFEST, read_manifest
from mechprobe.sweep.result import SweepResults

STAGES: dict[str, str] = {
    "evaluate": "evals", "sweep": "sweep", "drift": "drift", "weights": "weights", "probe": "probe", "emergence": "emergence",
    "logprobs": "logprobs", "dynamics": "dynamics",
}  # fmt: skip
"""Stage → its folder in a run."""
UNKNOWN = "the optimizer step of a checkpoint is unknown; set emergence.final_steps, or give a model folder that mechprobe posttrain made"
SINGLE = "it has one checkpoint"


def stage_folders(layout: RunLayout) -> dict[str, Path]:
    """The finished stages that the timeline reads; an imported evaluation may hold no outcomes of single samples."""
    folders = {stage: getattr(layout, name) for stage, name in STAGES.items()}
    finished = {stage: folder for stage, folder in folders.items() if (folder / MANIFEST).is_file()}
    if "evaluate" in finished and not (finished["evaluate"] / OUTCOMES_FILE).is_file():
        del finished["evaluate"]
    return finished


def build_timeline(layout: RunLayout, run: Mapping[str, Any], base: str, axis: Axis = "steps") -> Timeline | None:
    """The timeline of a run; None where no stage that it reads has models of an arm with two checkpoints.

    Args:
        layout: The run folder.
        run: Content of ``run.json``.
        base: Name of the model before post-training.
        axis: Unit of the axis. Tokens need a recorded number for every checkpoint; without it the axis is steps, and the
            timeline says why.

    Raises:
        ArtifactError: A result file is damaged.
        ConfigError: Steps of an arm do not rise.
    """
    folders = stage_folders(layout)
    measured = _measured(folders, layout)
    forced = FORCED.format(model=base)  # base with the forced beginning of the response: no trained model
    models = list(dict.fromkeys(m for part in measured for m in part.points if m not in (base, forced)))
    paths = model_folders(run)
    steps, arms = _arms(models, base, run, folders, paths)
    if not any(len(arm.checkpoints) > 1 for arm in arms):
        return None
    left_out = {
        arm.name: SINGLE if len(arm.checkpoints) < 2 else UNKNOWN
        for arm in arms
        if len(arm.checkpoints) < 2 or not arm.steps
    }
    shown = [arm for arm in arms if arm.name not in left_out]
    tokens, why = read_tokens(shown, paths, base)
    used: Axis = "tokens" if axis == "tokens" and shown and not why else "steps"
    places = tokens if used == "tokens" else steps
    return Timeline(
        base=base,
        axis=used,
        axis_note=f"The axis is optimizer steps and not tokens: {why}." if axis == "tokens" and why else "",
        steps=steps,
        tokens=tokens,
        arms={arm.name: _arm_timeline(arm, base, steps, places, measured) for arm in shown},
        left_out=left_out,
        dips=_dips(folders.get("dynamics")),
        stages=tuple(folders),
        missing={stage: f"mechprobe {stage}" for stage in STAGES if stage not in folders},
        alpha=ALPHA,
        draws=N_DRAWS,
    )


def _measured(folders: Mapping[str, Path], layout: RunLayout) -> list[Measured]:
    readers: dict[str, Callable[[Path], list[Measured]]] = {
        "evaluate": of_outcomes,
        "sweep": lambda folder: of_sweep(SweepResults.load(folder), layout.benchmarks),
        "drift": lambda folder: of_drift(DivergenceResult.load(folder)),
        "weights": lambda folder: of_weights(WeightsResult.load(folder)),
        "probe": lambda folder: of_probe(ProbeResult.load(folder)),
        "emergence": lambda folder: of_emergence(Emergence.load(folder)),
        "logprobs": lambda folder: of_logprobs(LogprobsResult.load(folder)),
    }
    found = [part for stage, read in readers.items() if stage in folders for part in read(folders[stage])]
    if "sweep" in folders and not any(part.panel == LENGTH for part in found):
        found += lengths_of_sweep(SweepResults.load(folders["sweep"]), layout.benchmarks)
    return found


def _arms(
    models: Sequence[str], base: str, run: Mapping[str, Any], folders: Mapping[str, Path], paths: Mapping[str, str]
) -> tuple[dict[str, int], list[Arm]]:
    """Steps of the models and their arms; settings of ``run.json`` win over those of stages, and these over model folders."""
    final = _final_steps(run, folders)
    final = with_recorded(final, paths.items(), base)
    named = (run.get("emergence") or {}).get("arms") or {}
    given = {arm: tuple(names) for arm, names in named.items() if set(names) <= set(models)}
    if given:
        config = EmergenceConfig(base=base, arms=given, final_steps=final)
        arms = find_arms([base, *models], config)
    else:
        arms = all_arms(models, base, final)
    steps = {model: step for arm in arms for model, step in zip(arm.checkpoints, arm.steps, strict=bool(arm.steps))}
    return {base: 0, **steps}, arms


def _final_steps(run: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, int]:
    sections = ("emergence", "sweep", "probe")
    given = [(run.get(name) or {}).get("final_steps") or {} for name in sections]
    used = [
        read_manifest(folders[name])["config"].get("final_steps") or {}
        for name in (*sections, "dynamics", "logprobs")
        if name in folders
    ]
    found: dict[str, int] = {}
    for source in (*given, *used):
        found = {**source, **found}
    wrong = [name for name, step in found.items() if not isinstance(step, int)]
    if wrong:
        raise ConfigError(f"final_steps of {wrong[0]} is {found[wrong[0]]!r}; give a whole number of optimizer steps.")
    return found


def _arm_timeline(
    arm: Arm, base: str, steps: Mapping[str, int], places: Mapping[str, int], measured: Sequence[Measured]
) -> ArmTimeline:
    """One arm; ``places`` are those of the models on the axis."""
    own = [part for part in measured if part.arm in ("", arm.name)]
    own = [part for part in own if any(model in part.points for model in arm.checkpoints)]
    courses = {part.name: part.course(base, arm.checkpoints, places) for part in own}
    known = [course for course in courses.values() if course is not None]
    heads = [course for part in own if part.headline and (course := courses[part.name]) is not None]
    return ArmTimeline(
        checkpoints=arm.checkpoints,
        steps=arm.steps,
        at=tuple(places[model] for model in arm.checkpoints),
        series=tuple(_series(part, (base, *arm.checkpoints), steps, places) for part in own),
        panels=moved_first(heads),
        everything=moved_first(known),
    )


def _series(part: Measured, models: Sequence[str], steps: Mapping[str, int], places: Mapping[str, int]) -> Series:
    shown = [model for model in models if model in part.points]
    return Series(
        name=part.name, panel=part.panel, models=tuple(shown), steps=tuple(steps[model] for model in shown),
        at=tuple(places[model] for model in shown), values=tuple(part.points[model] for model in shown), n=part.n, units=part.units,
        unit=part.unit, headline=part.headline, unranked=part.unranked,
    )  # fmt: skip


def _dips(folder: Path | None) -> tuple[Dip, ...]:
    if folder is None:
        return ()
    return tuple(
        Dip(
            curve=name, label=curve.words, label_share=curve.label_share, depth=curve.depth, trough_step=curve.trough_step, recovery_step=curve.recovery_step,
            final_gain=curve.final_gain_interval, unit=curve.unit, n=curve.n,
        )
        for name, curve in Dynamics.load(folder).curves.items()
    )  # fmt: skip
