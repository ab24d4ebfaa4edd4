"""``mechprobe report``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.shared_options import DEFAULT_RUN

RunFolder = Annotated[Path, typer.Option("--run", "-r", help="Run folder.")]


def report(run: RunFolder = DEFAULT_RUN, as_json: options.Json = False) -> None:
    """Write one page with the verdict, the numbers and the figures of a run; it needs neither the models nor torch."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.files import read_json
    from mechprobe.report.stage import report as write_report

    page = write_report(run)
    content = read_json(page.with_name("report.json"))
    if as_json:
        say_json(content)
        return
    say(content["verdict"])
    for item in content["missing"]:
        say(f"Missing: {item['name']}; `{item['command']}` makes it")
    say(f"\nWritten to {page} (with report.md, report.json and figures/)")
