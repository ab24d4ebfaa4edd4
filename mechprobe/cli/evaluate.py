"""``mechprobe evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli.localize import Scorer, Tasks, task_settings
from mechprobe.cli.shared_options import Shared, takes_shared_options

Imports = Annotated[
    list[Path] | None,
    typer.Option("--import", metavar="FILE", help="Rollouts (JSON lines) to score instead of asking. May be repeated."),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]


@takes_shared_options
def evaluate(
    shared: Shared, out: Out = None, tasks: Tasks = None, scorer: Scorer = None, imports: Imports = None
) -> None:
    """Score the answers of every model on every sample as right, wrong or unparsed."""
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, next_step, say_result
    from mechprobe.cli.stage_lines import accuracy_lines, bias_lines, cut_lines, sampled_lines
    from mechprobe.evals.result import EvaluationSummary
    from mechprobe.pipeline.plans import plan_evaluate

    extra = task_settings(tasks, scorer)
    if imports:
        extra["evaluate"] = {"generation": "import", "imports": [str(path.absolute()) for path in imports]}
    run = shared.start(extra, own_inputs=tasks is not None, evals=out)
    folder = run.layout.evals
    found = carry_out(shared, run, "evaluate", folder=folder, plan=lambda: plan_evaluate(run), work=run.evaluate)
    if found is None:
        return
    summary = EvaluationSummary.load(run.layout.accuracy)
    if shared.as_json:
        say_json({"folder": str(folder), **summary.to_dict()})
        return
    lines = [*accuracy_lines(summary), *cut_lines(summary), *sampled_lines(summary), *bias_lines(summary)]
    say_result(lines, folder, next_step(run, folder, "evals", "select"), run=run)
