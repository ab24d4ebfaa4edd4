"""``mechprobe dynamics``: dip-and-recovery of every arm and task of a run, or of a file of published scores."""

from pathlib import Path

from mechprobe.dynamics.checkpoints import plan_lines, run_curves
from mechprobe.dynamics.config import DynamicsConfig
from mechprobe.dynamics.detect import adjust_labels
from mechprobe.dynamics.published import published_curves
from mechprobe.dynamics.result import RESULT_FILE, Dynamics
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ArtifactError
from mechprobe.files import write_bytes
from mechprobe.records import Outcomes, read_outcomes
from mechprobe.stage_folder import Stage, read_manifest

FIGURE_FILE = "dynamics.png"


def dynamics(
    source: Path | str,
    *,
    out: Path | str = "dynamics",
    config: DynamicsConfig | None = None,
    arms: EmergenceConfig | None = None,
    force: bool = False,
) -> Dynamics:
    """Classify every curve of a source; labels are Holm-adjusted over all its curves.

    Args:
        source: Folder of a finished evaluate stage whose models are base and checkpoints (``rl@step_000040``), or a file of
            published scores (`mechprobe.dynamics.published.read_published`).
        out: Stage folder for ``dynamics.json``, ``dynamics.png`` and ``manifest.json``.
        config: Level, draws, tasks and seed; the defaults if None.
        arms: Base and arms of a run: ``base``, ``arms`` and ``final_steps`` are read.
        force: Make the stage again.

    Returns:
        The result; a finished stage is read back.

    Raises:
        ArtifactError: The folder of outcomes is unfinished or another stage's, or ``out`` holds other work.
        ConfigError: There are no checkpoints.
        InputError: A file of scores cannot be used.
    """
    source, config, arms = Path(source), config or DynamicsConfig(), arms or EmergenceConfig()
    settings = {
        **config.model_dump(mode="json"),
        **arms.model_dump(mode="json", include={"base", "arms", "final_steps"}),
    }
    if source.is_dir() and read_manifest(source)["stage"] != "evaluate":
        raise ArtifactError(f"{source} is not an evaluate stage; give the folder of `mechprobe evaluate`.")
    outcomes = Outcomes(read_outcomes(source / "outcomes.jsonl")) if source.is_dir() else None
    if outcomes is not None:  # all refusals come before anything is written
        plan_lines(outcomes, config, arms)
    curves = published_curves(source, config) if outcomes is None else {}
    with Stage.open(
        Path(out),
        name="dynamics",
        config=settings,
        inputs={"evals" if source.is_dir() else "scores": source},
        force=force,
    ) as stage:
        if not stage.done:
            spaced = {}
            if outcomes is not None:
                curves, spaced = run_curves(outcomes, config, arms)
            _write(stage, Dynamics(
                folder=stage.folder, source=str(source), alpha=config.alpha, curves=adjust_labels(curves), spaced_by=spaced
            ), config.seed)  # fmt: skip
    return Dynamics.load(out)


def _write(stage: Stage, result: Dynamics, seed: int) -> None:
    from mechprobe.dynamics.figure import picture

    result.save(stage.folder / RESULT_FILE)
    write_bytes(stage.folder / FIGURE_FILE, picture(result.curves))
    stage.finish(
        outputs=[RESULT_FILE, FIGURE_FILE],
        counts={"curves": len(result.curves)},
        results={"labels": {name: curve.words for name, curve in result.curves.items()}},
        seed=seed,
    )
