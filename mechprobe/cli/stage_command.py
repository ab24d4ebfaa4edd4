"""The steps of every stage command: make missing stages, or print a plan; run the stage; print its result."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.cli.printing import note, say, say_json

if TYPE_CHECKING:
    from mechprobe.cli.shared_options import Shared
    from mechprobe.pipeline.plans import Plan
    from mechprobe.pipeline.run import Run


def carry_out(
    shared: "Shared", run: "Run", stage: str, *, folder: Path, plan: "Callable[[], Plan]", work: Callable[[], Any]
) -> Any:
    """Plan or run one stage, which writes to ``folder``, and make the stages that it needs first.

    Returns:
        What ``work`` returned; None after ``--dry-run``, which prints ``plan`` unless an earlier stage is missing.
    """
    from mechprobe.models.devices import check_device
    from mechprobe.pipeline.plans import plan_upstream
    from mechprobe.pipeline.upstream import make_upstream, missing_stages, refuse_missing, settings_kept
    from mechprobe.progress import activity
    from mechprobe.ranks import sharing
    from mechprobe.stage_folder import MANIFEST, require_creatable

    gc.freeze()  # every model that is freed is followed by a collection, which need not look through the libraries
    check_device(run.config.device)
    ranks = sharing()
    if shared.no_upstream or ranks.count > 1:  # several processes would each make the same stage
        refuse_missing(run, stage)
    if shared.dry_run and not ranks.is_first:
        return None
    if shared.dry_run or not (folder / MANIFEST).is_file():  # a finished stage is read where nothing can be written
        require_creatable(folder)
    if shared.dry_run:
        with activity("planning"):
            planned = with_cost(run, plan_upstream(run, stage, folder) or plan())
        say_plan(planned, as_json=shared.as_json)
        return None
    require_same_run(run)
    ranks.require_shared(run.folder)  # by then all have read the settings that the first one may change
    inside = folder not in [path for _, path in run.layout.elsewhere]
    if not ranks.is_first or (not inside and not missing_stages(run, stage)):  # nothing is written into the run folder
        make_upstream(run, stage, note)
        return work()
    with settings_kept(run) as made:
        made += make_upstream(run, stage, note)
        found = work()
        made += [stage] * inside
    return found


def require_same_run(run: "Run") -> None:
    """Refuse to mix two families of models in one run folder.

    Raises:
        ConfigError: The run folder was begun with other models.
    """
    from mechprobe.errors import ConfigError
    from mechprobe.run_config import RunConfig

    if not run.layout.run_file.is_file():
        return
    kept = RunConfig.of_run(run.folder).models
    if any(kept.get(name, path) != path for name, path in run.config.models.items()):
        raise ConfigError(
            f"{run.folder} was begun with the models {_named(kept)}, not {_named(run.config.models)}; "
            "give --run FOLDER for another run."
        )


def _named(models: dict[str, str]) -> str:
    return ", ".join(f"{name}={path}" for name, path in models.items())


def with_cost(run: "Run", plan: "Plan") -> "Plan":
    """A plan with FLOP, memory, disk and time of its stage, or of the chain, on this machine."""
    from dataclasses import replace

    from mechprobe.pipeline.costs import cost_lines

    lines, data = cost_lines(run, plan.stage, plan.data)  # `intervene --task` plans the stage harness
    return replace(plan, lines=[*plan.lines, *lines], data={**plan.data, **data})


def say_plan(plan: "Plan", *, as_json: bool) -> None:
    """Print a plan."""
    if as_json:
        say_json(plan.to_dict())
        return
    for line in plan.lines:
        say(line)
    say("Nothing was written.")


def say_result(lines: Sequence[str], folder: Path, next_step: str = "", *, run: "Run | None" = None) -> None:
    """Print the lines of a result, where it is, and the next command.

    Where ``run`` keeps no settings, because every stage is outside its folder, the next command needs the same options.
    """
    for line in lines:
        say(line)
    if next_step and run is not None and not run.layout.run_file.is_file():
        next_step += f" (with the same --config, --models and --set, because {run.folder} holds no settings)"
    say(f"\nWritten to {folder}" + (f"\nNext: {next_step}" if next_step else ""))


def next_step(run: "Run", folder: Path, own: str, command: str) -> str:
    """The next command after a stage whose folder in the run is ``own``; it says so where it does not read ``folder``."""
    text = f"mechprobe {command}{in_run(run)}"
    if folder.resolve() == (run.folder / own).resolve():
        return text
    return (
        f"{text} --selection {folder}"
        if command == "intervene"
        else f"{text} (it reads {run.folder / own}, not this folder)"
    )


def in_run(run: "Run") -> str:
    """The option that names the run folder in a suggested command; empty for the default one."""
    from mechprobe.cli.shared_options import DEFAULT_RUN

    return "" if run.folder == DEFAULT_RUN else f" --run {run.folder}"
