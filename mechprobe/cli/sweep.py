"""``mechprobe sweep``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.sweep.result import SweepResults

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Work = Annotated[
    Path | None, typer.Option("--work", help="Folder of the cells. By default benchmarks/ beside the stage folder.")
]
Checkpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of further models, <arm>/step_<n>/ (rl/step_000040/).")
]
Benchmarks = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmarks",
        "-b",
        metavar="FILE.toml|NAME",
        help="Benchmarks from a file, or a stand-in by its name. May be repeated. By default the stand-ins, without those of the reward model and of safety.",
    ),
]


@takes_shared_options
def sweep(
    shared: Shared, out: Out = None, work: Work = None, checkpoints: Checkpoints = None, benchmarks: Benchmarks = None
) -> None:
    """Evaluate every model and checkpoint on every benchmark, with base on the same items. A killed sweep goes on."""
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, say_result
    from mechprobe.emergence.arms import with_checkpoints
    from mechprobe.pipeline.plans import plan_sweep

    section: dict[str, Any] = {"benchmarks": _settings(benchmarks)} if benchmarks else {}
    section |= {"checkpoints": str(checkpoints)} if checkpoints else {}
    beside = None if out is None else out.parent / "benchmarks"
    folders = {"sweep": out, "benchmarks": work or beside}
    run = shared.start({"sweep": section} if section else {}, own_inputs=_own(benchmarks), **folders)
    models = with_checkpoints(run.config.models, run.config.sweep.checkpoints)
    run.config = run.config.model_copy(update={"models": models})
    folder = run.layout.sweep
    found = carry_out(shared, run, "sweep", folder=folder, plan=lambda: plan_sweep(run), work=run.sweep)
    if found is None:
        return
    if shared.as_json:
        say_json({"folder": str(folder), "cells_folder": str(run.layout.benchmarks), **found.to_dict()})
        return
    say_result([*sweep_lines(found), f"\nCells: {run.layout.benchmarks}"], folder)


def _settings(given: Sequence[str]) -> dict[str, Any]:
    """The benchmarks of all files and names together; `ConfigError` for a name given twice."""
    from mechprobe.errors import ConfigError
    from mechprobe.sweep.stage import read_benchmarks

    found: dict[str, Any] = {}
    for source in given:
        for name, benchmark in read_benchmarks(source).items():
            if name in found:
                raise ConfigError(f"--benchmarks gives '{name}' twice; give it once.")
            found[name] = benchmark.model_dump(mode="json", exclude_unset=True)
    return found


def _own(given: Sequence[str] | None) -> bool:
    """Whether a file of finished results makes the models of the embedded lab unneeded."""
    from mechprobe.sweep.stage import read_benchmarks

    found = [benchmark for source in given or () for benchmark in read_benchmarks(source).values()]
    return bool(found) and all(benchmark.results for benchmark in found)


def sweep_lines(found: "SweepResults") -> list[str]:
    """Base, checkpoints and the change of the last one for every arm and benchmark."""
    from mechprobe.cli.printing import table_lines
    from mechprobe.sweep.table import SAFETY_COLUMNS, arm_tables, safety_table

    tables, left_out = arm_tables(found)
    n = max((cell.value.n for row in found.cells.values() for cell in row.values()), default=0)
    lines = [f"95 % intervals by item (n up to {n}); shares in %, changes in points and paired"]
    for table in tables:
        lines += ["", *table_lines(table.rows, table.columns, corner=table.title)]
    if found.safety:
        lines += ["", *table_lines(safety_table(found), SAFETY_COLUMNS)]
    if left_out:
        lines.append("Further checkpoints are in table.md.")
    return [*lines, *([""] if found.notes else []), *found.notes]
