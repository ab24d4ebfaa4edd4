"""``mechprobe doctor``: checks of the installation, or of the models and inputs of a run."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Check the models and inputs of this run instead (TOML). Reads no weights without --measure.",
    ),
]
Models = Annotated[
    list[str] | None, typer.Option("--models", "-m", metavar="NAME=PATH ...", help="Check these models instead.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="Override one setting. May be repeated."),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let model folders run their own code.")]


Measure = Annotated[
    bool, typer.Option("--measure", help="Also load the models, and measure how far kinds of attention move residuals.")
]


def doctor(
    config: Config = None,
    models: Models = None,
    set_: Set = None,
    measure: Measure = False,
    trust: Trust = False,
    as_json: options.Json = False,
) -> None:
    """Check the installation, or with --config or --models what a run would do with its models, and what it would refuse.

    Exit code 1 when something that mechprobe needs is missing, and 2 when a model or an input is refused.
    """
    from mechprobe.cli.printing import say, say_json

    of_run = config is not None or bool(models)
    if of_run:
        from mechprobe.cli.shared_options import DEFAULT_RUN
        from mechprobe.doctor.run import run_checks
        from mechprobe.pipeline.run import Run
        from mechprobe.run_config import RunConfig

        named = options.parse_models(models) if models else None
        settings = RunConfig.build(config, set_ or (), models=named)
        rows = run_checks(Run(settings, DEFAULT_RUN, trust_remote_code=trust), measure=measure)
    else:
        from mechprobe.doctor.installation import checks

        rows = checks()
    if as_json:
        say_json([row.__dict__ for row in rows])
    else:
        for row in rows:
            say(f"{row.state:<5} {row.name:<22} {row.text}")
    if any(row.state == "fail" for row in rows):
        raise typer.Exit(2 if of_run else 1)
