"""``mechprobe emergence``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.cache import Dtype, Sites, cache_settings
from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.emergence.result import Emergence

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Work = Annotated[
    Path | None,
    typer.Option(
        "--work", help="Folder of the store and the dictionaries. By default checkpoints/ beside the stage folder."
    ),
]
Checkpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of further models, <arm>/step_<n>/ (rl/step_000040/).")
]
Layout = Annotated[
    str | None, typer.Option("--layout", help="arms: a dictionary for each arm; together: one over all.")
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", help="Dictionaries trained with different seeds, pairwise ones too.")
]


@takes_shared_options
def emergence(
    shared: Shared,
    out: Out = None,
    work: Work = None,
    checkpoints: Checkpoints = None,
    prompts: options.Prompts = None,
    sites: Sites = None,
    dtype: Dtype = None,
    layout: Layout = None,
    seeds: Seeds = None,
) -> None:
    """Follow features over training checkpoints: when they appear, how long they stay, and what they cause."""
    from mechprobe.cli.options import prompt_settings
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, say_result
    from mechprobe.emergence.arms import with_checkpoints
    from mechprobe.environment import require
    from mechprobe.pipeline.plans import plan_emergence
    from mechprobe.report.pages.emergence import emergence_report

    require("matplotlib", "The report of an emergence stage")
    extra = cache_settings(sites, dtype=dtype) | prompt_settings(prompts)
    given = {"checkpoints": None if checkpoints is None else str(checkpoints), "layout": layout, "seeds": seeds}
    section = {name: value for name, value in given.items() if value is not None}
    if section:
        extra["emergence"] = section
    beside = None if out is None else out.parent / "checkpoints"
    run = shared.start(extra, own_inputs=prompts is not None, emergence=out, checkpoints=work or beside)
    folder = run.layout.emergence
    models = with_checkpoints(run.config.models, run.config.emergence.checkpoints)
    run.config = run.config.model_copy(update={"models": models})
    found = carry_out(shared, run, "emergence", folder=folder, plan=lambda: plan_emergence(run), work=run.emergence)
    if found is None:
        return
    page = emergence_report(folder)
    if shared.as_json:
        say_json({"folder": str(folder), "report": str(page), **found.to_dict()})
        return
    say_result([*emergence_lines(found), f"\nReport: {page}"], folder)


def emergence_lines(found: "Emergence") -> list[str]:
    """The first tables of the report: the claim of the paper, and the arms."""
    from mechprobe.report.pages.emergence import sections
    from mechprobe.report.pages.markdown import plain_lines, section_lines

    return plain_lines([line for section in sections(found)[:2] for line in section_lines(section, set())])[1:]
