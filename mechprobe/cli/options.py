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
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        "-p",
        metavar="FILE|DIR|hub:NAME",
        help="JSON lines, plain text, Parquet, or a Hugging Face dataset (folder or hub:NAME).",
    ),
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="Of --prompts: jsonl, text, paragraphs, parquet or dataset; else by its name."),
]
Split = Annotated[str | None, typer.Option("--split", help="Split of a dataset that has several.")]
Field = Annotated[
    list[str] | None,
    typer.Option(
        "--field", metavar="NAME=COLUMN", help="Column of prompt, response, task, id or messages; repeatable."
    ),
]
ChatTemplate = Annotated[
    bool | None, typer.Option("--chat-template/--no-chat-template", help="Ask with the tokenizer's chat template.")
]
SystemPrompt = Annotated[str | None, typer.Option("--system-prompt", help="First message of every conversation.")]
Truncate = Annotated[
    str | None, typer.Option("--truncate", help="What is too long: response (default), right, left, refuse or drop.")
]
Pack = Annotated[
    bool | None, typer.Option("--pack/--no-pack", help="Several documents in one sequence, with the end token between.")
]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", help="Longest sequence, in tokens; the shortest context by default.")
]
MaxPrompts = Annotated[int | None, typer.Option("--max-prompts", help="Draw so many prompts by seed.")]
