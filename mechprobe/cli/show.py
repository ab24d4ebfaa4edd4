"""``mechprobe show`` and ``mechprobe report``: what a run found, on the terminal and as a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.shared_options import DEFAULT_RUN

if TYPE_CHECKING:
    from mechprobe.run_layout import RunLayout

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
RunFolder = Annotated[Path, typer.Option("--run", "-r", help="Run folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and its cost. Write nothing.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print the whole report as text.")]


def show(folder: Folder = DEFAULT_RUN, verbose: Verbose = False, as_json: options.Json = False) -> None:
    """Print the verdict, the accuracies and the main interventions of a finished run."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.errors import ArtifactError
    from mechprobe.files import read_json
    from mechprobe.run_layout import RunLayout

    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist; `mechprobe run --run {folder}` makes a run there.")
    if as_json:
        say_json(read_json(RunLayout(folder).report_json))
        return
    for line in show_lines(folder, verbose=verbose):
        say(line)


def show_lines(folder: Path, *, verbose: bool = False) -> list[str]:
    """The summary of a run folder: at most 40 lines, or the whole report as text with ``verbose``."""
    from mechprobe.cli.summary import summary_lines
    from mechprobe.report.pages.markdown import plain_lines
    from mechprobe.report.stage import report_markdown
    from mechprobe.run_layout import RunLayout

    if not verbose:
        return summary_lines(RunLayout(folder))
    return plain_lines(report_markdown(folder).splitlines())


def report(run: RunFolder = DEFAULT_RUN, as_json: options.Json = False, dry_run: DryRun = False) -> None:
    """Write one page with the verdict, the numbers and the figures of a run; it needs neither the models nor torch."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.files import read_json
    from mechprobe.report.stage import check_results, report as write_report
    from mechprobe.run_layout import RunLayout

    if dry_run:
        check_results(run)
        _plan_report(RunLayout(run), as_json=as_json)
        return

    page = write_report(run)
    content = read_json(page.with_name("report.json"))
    if as_json:
        say_json(content)
        return
    say(content["first"]["sentence"])
    for item in content["missing"]:
        say(f"Missing: {item['name']}; `{item['command']}` makes it")
    say(f"\nWritten to {page} (with report.md, report.json and figures/)")
    if (explorer := page.parent / "features" / "index.html").is_file():
        say(f"Every live feature: {explorer}")


def _plan_report(layout: "RunLayout", *, as_json: bool) -> None:
    """Print what a report of a run folder costs here."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.planning.machine import rates_here
    from mechprobe.planning.page import report_of
    from mechprobe.planning.stage_cost import table

    rates, known, said = rates_here("cpu")
    cost = report_of(layout, rates, known=known)
    if as_json:
        say_json({"stage": "report", "folder": str(layout.report), "cost": [cost.to_dict()]})
        return
    say("\n".join([*table([cost], rates), *said, "Nothing was written."]))
