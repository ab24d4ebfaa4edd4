"""``mechprobe select``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

Features = Annotated[
    str | None,
    typer.Option(
        "--features", "-f",
        help="top50, top:N, agnostic, rule:\"mas_rl>0.5 and density_joint<0.1\", file:PATH, ids:1,2,3 or random:50@seed.",
    ),
]  # fmt: skip
Ranking = Annotated[
    str | None,
    typer.Option(
        "--ranking", help="ig (integrated gradients), joint (joint attribution), score (the paper's Score) or relie."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]


@takes_shared_options
def select(shared: Shared, out: Out = None, features: Features = None, ranking: Ranking = None) -> None:
    """Rank every feature on the samples that the tuned model gained, and select those that all tasks share."""
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.selection_lines import selection_lines
    from mechprobe.cli.stage_command import carry_out, next_step, say_result
    from mechprobe.pipeline.plans import plan_select
    from mechprobe.selection.result import SelectionSummary

    section = {key: value for key, value in (("rule", features), ("ranking", ranking)) if value is not None}
    run = shared.start({"select": section} if section else None, selection=out)
    folder = run.layout.selection
    if carry_out(shared, run, "select", folder=folder, plan=lambda: plan_select(run), work=run.select) is None:
        return
    summary = SelectionSummary.load(run.layout.selected)
    if shared.as_json:
        say_json(summary.to_dict())
        return
    say_result(selection_lines(summary), folder, next_step(run, folder, "selection", "intervene"), run=run)
