"""``mechprobe dynamics``: dip-and-recovery of every arm on every benchmark of a sweep, task of a run, or of published scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mechprobe.dynamics.checkpoints import plan_lines, run_curves
from mechprobe.dynamics.config import DynamicsConfig
from mechprobe.dynamics.detect import adjust_labels
from mechprobe.dynamics.published import published_curves, read_published, split_untested
from mechprobe.dynamics.result import RESULT_FILE, DipResult, Dynamics
from mechprobe.dynamics.swept import Swept
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ArtifactError
from mechprobe.files import write_bytes
from mechprobe.records import Outcomes, read_outcomes
from mechprobe.stage_folder import Stage, read_manifest

FIGURE_FILE = "dynamics.png"


class Source(NamedTuple):
    """A source that was checked: what it is, what would be classified, and the function that does it.

    Attributes:
        kind: ``sweep``, ``evals`` or ``scores``.
        lines: The plan.
        curves: Name of each curve → its number of checkpoints.
        classify: Returns the curves, each for itself, and how the checkpoints of every arm are spaced.
        notes: What has no curve.
    """

    kind: str
    lines: list[str]
    curves: dict[str, int]
    classify: Callable[[], tuple[dict[str, DipResult], Any]]
    notes: tuple[str, ...] = ()


def dynamics(
    source: Path | str,
    *,
    out: Path | str = "dynamics",
    work: Path | str | None = None,
    config: DynamicsConfig | None = None,
    arms: EmergenceConfig | None = None,
    force: bool = False,
) -> Dynamics:
    """Classify every curve of a source; labels are Holm-adjusted over all its curves.

    Args:
        source: Folder of a finished sweep, or of a finished evaluate stage, whose models are base and checkpoints
            (``rl@step_000040``); or a file of published scores (`mechprobe.dynamics.published.read_published`).
        out: Stage folder for ``dynamics.json``, ``dynamics.png`` and ``manifest.json``.
        work: Folder of the cells of a sweep; ``benchmarks`` beside it if None.
        config: Level, draws, tasks and seed; the defaults if None.
        arms: Base and arms of a run: ``base``, ``arms`` and ``final_steps`` are read. A sweep has a base of its own.
        force: Make the stage again.

    Returns:
        The result; a finished stage is read back.

    Raises:
        ArtifactError: The source is unfinished or another stage's, a cell of a sweep has changed, or ``out`` holds other work.
        ConfigError: There are no checkpoints.
        InputError: A file of scores cannot be used.
    """
    source, config, arms = Path(source), config or DynamicsConfig(), arms or EmergenceConfig()
    settings = {
        **config.model_dump(mode="json"),
        **arms.model_dump(mode="json", include={"base", "arms", "final_steps"}),
    }
    found = open_source(source, work, config, arms)  # all refusals come before anything is written
    curves, spaced = ({}, {}) if source.is_dir() else found.classify()
    with Stage.open(Path(out), name="dynamics", config=settings, inputs={found.kind: source}, force=force) as stage:
        if not stage.done:
            if source.is_dir():
                curves, spaced = found.classify()
            _write(stage, Dynamics(
                folder=stage.folder, source=str(source), alpha=config.alpha, curves=adjust_labels(curves), spaced_by=spaced,
                notes=found.notes,
            ), config.seed)  # fmt: skip
    return Dynamics.load(out)


def open_source(source: Path | str, work: Path | str | None, config: DynamicsConfig, arms: EmergenceConfig) -> Source:
    """Check a source and plan its curves; arguments and errors are those of `dynamics`."""
    source = Path(source)
    if not source.is_dir():
        table, notes = split_untested(read_published(source))
        lines = [f"{name}: {len(each['steps'])} checkpoints, n = {each.get('n')}" for name, each in table.items()]
        counts = {name: len(each["steps"]) for name, each in table.items()}
        return Source("scores", lines, counts, lambda: (published_curves(source, config), {}), notes)
    stage = read_manifest(source)["stage"]
    if stage == "sweep":
        swept = Swept.open(source, work, config, arms)
        counts = {each.name: len(each.course.steps) for each in swept.planned}
        return Source(
            "sweep", swept.plan_lines(config), counts, lambda: (swept.curves(config), swept.spaced_by), swept.notes
        )
    if stage != "evaluate":
        raise ArtifactError(
            f"{source} is the stage '{stage}', not an evaluate stage or a sweep; give the folder of `mechprobe evaluate` or "
            "`mechprobe sweep`."
        )
    outcomes = Outcomes(read_outcomes(source / "outcomes.jsonl"))
    lines, counts = plan_lines(outcomes, config, arms)
    return Source("evals", lines, counts, lambda: run_curves(outcomes, config, arms))


def _write(stage: Stage, result: Dynamics, seed: int) -> None:
    from mechprobe.dynamics.figure import picture

    result.save(stage.folder / RESULT_FILE)
    write_bytes(stage.folder / FIGURE_FILE, picture(result.curves, result.spaced_by))
    stage.finish(
        outputs=[RESULT_FILE, FIGURE_FILE],
        counts={"curves": len(result.curves)},
        results={"labels": {name: curve.words for name, curve in result.curves.items()}},
        seed=seed,
    )
