"""``mechprobe show``: what a run found, printed again."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.shared_options import DEFAULT_RUN

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every table.")]


def show(folder: Folder = DEFAULT_RUN, verbose: Verbose = False, as_json: options.Json = False) -> None:
    """Print the verdict, the accuracies and the main interventions of a finished run."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.errors import ArtifactError
    from mechprobe.files import read_json
    from mechprobe.run_layout import RunLayout

    layout = RunLayout(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist; `mechprobe run --run {folder}` makes a run there.")
    if as_json:
        say_json(read_json(layout.report_json))
        return
    for line in show_lines(folder, verbose=verbose):
        say(line)


def show_lines(folder: Path, *, verbose: bool = False) -> list[str]:
    """The summary of a run folder: at most 40 lines, or the whole report as Markdown with ``verbose``."""
    from mechprobe.cli.summary import summary_lines
    from mechprobe.run_layout import RunLayout

    if not verbose:
        return summary_lines(RunLayout(folder))
    from mechprobe.report.stage import report_markdown

    return report_markdown(folder).splitlines()
