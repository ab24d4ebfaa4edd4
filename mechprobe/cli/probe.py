"""``mechprobe probe``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.drift.probe.result import ProbeResult

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Evals = Annotated[Path | None, typer.Option("--evals", help="Finished evaluate stage outside the run.")]


@takes_shared_options
def probe(shared: Shared, out: Out = None, evals: Evals = None) -> None:
    """Follow skill profiles over checkpoints: drift from base, balance, collapse, and what it goes along with."""
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.probe_lines import probe_lines
    from mechprobe.cli.stage_command import carry_out, say_result
    from mechprobe.pipeline.plans import plan_probe

    run = shared.start(probe=out, evals=evals)
    folder = run.layout.probe
    found: ProbeResult | None = carry_out(
        shared, run, "probe", folder=folder, plan=lambda: plan_probe(run), work=run.probe
    )
    if found is None:
        return
    if shared.as_json:
        say_json({"folder": str(folder), **found.to_dict()})
        return
    say_result(probe_lines(found), folder)
