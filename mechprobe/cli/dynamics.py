"""``mechprobe dynamics``."""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli.shared_options import DEFAULT_RUN, Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.dynamics.result import DipResult, Dynamics
    from mechprobe.pipeline.run import Run

STABLE = "stable: share of resampled curves, each for itself, that have the label; below 50 % the label is unstable"

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Table = Annotated[
    Path | None,
    typer.Option(
        "--table", help="Published scores (CSV or JSON with n), instead of the outcomes of a run's checkpoints."
    ),
]
Evals = Annotated[Path | None, typer.Option("--evals", help="Finished evaluate stage, instead of the run's.")]
Sweep = Annotated[Path | None, typer.Option("--sweep", help="Finished sweep, instead of the run's.")]
Work = Annotated[
    Path | None, typer.Option("--work", help="Folder of the sweep's cells. By default benchmarks/ beside it.")
]
_MOST_ROWS = 24


@takes_shared_options
def dynamics(
    shared: Shared, out: Out = None, table: Table = None, evals: Evals = None, sweep: Sweep = None, work: Work = None
) -> None:
    """Classify scores over training checkpoints: do they dip below base, and do they recover?"""
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, say_result
    from mechprobe.environment import require
    from mechprobe.errors import ConfigError
    from mechprobe.pipeline.plans import plan_dynamics

    require("matplotlib", "The figure of curves")
    given = [f"--{name}" for name, path in (("table", table), ("evals", evals), ("sweep", sweep)) if path is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are {len(given)} sources; give one of them.")
    if work is not None and sweep is None and shared.run is None:
        raise ConfigError("--work is the folder of a sweep's cells; give --sweep, too.")
    if table is not None:
        out = out or (shared.run or DEFAULT_RUN.with_name(table.stem)) / "dynamics"
    cells = work or (None if sweep is None else sweep.parent / "benchmarks")
    if sweep is not None:
        out = out or (shared.run or sweep.parent) / "dynamics"
    run = shared.start(own_inputs=bool(given), dynamics=out, evals=evals, sweep=sweep, benchmarks=cells)
    folder = run.layout.dynamics
    if table is not None:
        found = _published(shared, run, table)
    else:
        found = carry_out(shared, run, "dynamics", folder=folder, plan=lambda: plan_dynamics(run), work=run.dynamics)
    if found is None:
        return
    if shared.as_json:
        say_json({"folder": str(folder), **found.to_dict()})
        return
    say_result(dynamics_lines(found), folder)


def _published(shared: Shared, run: "Run", table: Path) -> "Dynamics | None":
    """The result of a file of scores; None after ``--dry-run``, which reads the file."""
    from mechprobe.cli.stage_command import say_plan
    from mechprobe.dynamics.stage import dynamics as classify, open_source
    from mechprobe.pipeline.plans import Plan

    config, folder = run.config.dynamics, run.layout.dynamics
    if not shared.dry_run:
        return classify(table, out=folder, config=config, force=shared.force)
    found = open_source(table, None, config, run.config.emergence)
    say_plan(Plan("dynamics", folder, found.lines, {"curves": found.curves}), as_json=shared.as_json)
    return None


def dynamics_lines(found: "Dynamics") -> list[str]:
    """A row for each curve, what the labels mean, and how length moves."""
    from mechprobe.cli.printing import table_lines
    from mechprobe.dynamics.labels import MEANING

    shown = dict(list(found.curves.items())[:_MOST_ROWS])
    columns = ["label", "stable", "dip p", "depth", "trough", "back at", "final gain", "n"]
    more = (
        [f"... and {len(found.curves) - len(shown)} more curves in dynamics.json"]
        if len(found.curves) > len(shown)
        else []
    )
    labels = list(dict.fromkeys(curve.label for curve in shown.values()))
    turned = list(
        dict.fromkeys(name.partition("/")[2] or name for name, each in shown.items() if not each.higher_is_better)
    )
    even = [arm for arm, spaced in found.spaced_by.items() if spaced == "checkpoints"]
    return [
        f"Scores over checkpoints; p-values adjusted over {len(found.curves)} curves (Holm), level {found.alpha:g}",
        *table_lines({name: _row(curve) for name, curve in shown.items()}, columns),
        *more,
        *(f"{label}: {MEANING[label]}" for label in labels),
        *([STABLE] if any(curve.resampled_labels for curve in shown.values()) else []),
        *(
            [
                f"Lower is better in {', '.join(turned)}: a dip is a rise above base, and depth and gain count what is better"
            ]
            if turned
            else []
        ),
        *(
            [f"A step of {', '.join(even)} is unknown, so its checkpoints count 1, 2, 3... (emergence.final_steps)"]
            if even
            else []
        ),
        *_length_lines(shown),
        *found.notes[:4],
    ]


def _row(curve: "DipResult") -> dict[str, str]:
    from mechprobe.formatting import p_value

    digits = 3 if curve.unit == "share" else 1
    gain = curve.final_gain_interval
    return {
        "label": curve.words,
        "stable": stable_text(curve),
        "dip p": p_value(curve.tests.dip_p),
        "depth": f"{curve.depth:.{digits}f}",
        "trough": f"{curve.trough_step:g}",
        "back at": "-" if curve.recovery_step is None else f"{curve.recovery_step:g}",
        "final gain": f"{gain.value:+.{digits}f} [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]",
        "n": "-" if curve.n is None else f"{curve.n}" + (f" × {curve.responses}" if curve.responses > 1 else ""),
    }


def stable_text(curve: "DipResult") -> str:
    """``92 %``, or ``14 %, unstable``."""
    if not curve.resampled_labels:
        return "-"
    return f"{100 * curve.label_share:.0f} %{', unstable' if curve.unstable else ''}"


def _length_lines(curves: dict[str, "DipResult"]) -> list[str]:
    """One line for each curve whose response lengths are known, those that dip first, at most six."""
    dips_first = sorted(curves.items(), key=lambda named: not named[1].dipped)
    found = [(name, curve.length) for name, curve in dips_first if curve.length is not None]
    return [
        f"Length in {name}: ×{length.surge_ratio:.2f} of base at step {length.surge_step:g}, then ×{length.contraction_ratio:.2f}"
        + (", rises again at the end" if length.late_rerise else "")
        + f"; trough − peak {length.lag:+g} steps"
        + (f"; Spearman with the score {length.spearman:+.2f}" if isfinite(length.spearman) else "")
        for name, length in found[:6]
    ]
