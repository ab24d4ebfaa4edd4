"""``mechprobe localize``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

Tasks = Annotated[Path | None, typer.Option("--tasks", help="JSON lines of id, task, prompt, answer (and options).")]
Scorer = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="exact, numeric, letter, yes_no, refusal, boxed, skill, final:<MARKER> or python:<MODULE>:<FUNCTION>.",
    ),
]
Sites = Annotated[str | None, typer.Option("--sites", help="all, or resid_post.0,resid_post.1 ...")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]


def task_settings(tasks: Path | None, scorer: str | None) -> dict[str, Any]:
    """The section ``tasks`` that the task options give."""
    section: dict[str, Any] = {"file": None if tasks is None else str(tasks), "scorer": scorer}
    given = {name: value for name, value in section.items() if value is not None}
    return {"tasks": given} if given else {}


@takes_shared_options
def localize(shared: Shared, out: Out = None, tasks: Tasks = None, scorer: Scorer = None, sites: Sites = None) -> None:
    """Measure, for every site, how much of the gain a patch of the whole residual carries in each direction."""
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, next_step, say_result
    from mechprobe.cli.stage_lines import ceiling_lines
    from mechprobe.pipeline.plans import plan_localize

    extra = task_settings(tasks, scorer)
    if sites:
        extra["localize"] = {"sites": "all" if sites == "all" else sites.split(",")}
    run = shared.start(extra, own_inputs=tasks is not None, localize=out)
    folder = run.layout.localize
    found = carry_out(shared, run, "localize", folder=folder, plan=lambda: plan_localize(run), work=run.localize)
    if found is None:
        return
    if shared.as_json:
        say_json({"folder": str(folder), **found.to_dict()})
        return
    say_result(ceiling_lines(found), folder, next_step(run, folder, "localize", "cache"), run=run)
