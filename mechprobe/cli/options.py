"""Options that mean the same in every command."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Run configuration (TOML); its paths are relative to it."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--models", "-m", metavar="NAME=PATH ...", help="Models by name: local folders or hub names."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of every random draw.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ...")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map", help='Spread each model over devices: auto, or parts as TOML, {"model.embed_tokens"=0}.'
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it costs; write nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Make a finished or unfinished stage again.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let model folders run code of their own.")]
