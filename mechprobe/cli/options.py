"""Options of prompts and models that several commands have."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Make this stage again.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map", help='Spread each model over devices: auto, or a TOML table, {"model.embed_tokens"=0}.'
    ),
]
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
    typer.Option(
        "--format",
        help="Format of --prompts: jsonl, text, paragraphs, parquet or dataset. By default from the file name.",
    ),
]
Split = Annotated[str | None, typer.Option("--split", help="Split of a dataset that has several.")]
Field = Annotated[
    list[str] | None,
    typer.Option(
        "--field", metavar="NAME=COLUMN", help="Column of prompt, response, task, id or messages. May be repeated."
    ),
]
ChatTemplate = Annotated[
    bool | None,
    typer.Option("--chat-template/--no-chat-template", help="Render prompts with the tokenizer's chat template."),
]
SystemPrompt = Annotated[str | None, typer.Option("--system-prompt", help="First message of every conversation.")]
Truncate = Annotated[
    str | None,
    typer.Option("--truncate", help="How to shorten long sequences: response (default), right, left, refuse or drop."),
]
Pack = Annotated[
    bool | None,
    typer.Option("--pack/--no-pack", help="Pack several documents, separated by the end token, into one sequence."),
]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", help="Longest sequence, in tokens. By default the shortest context of the models."),
]
MaxPrompts = Annotated[int | None, typer.Option("--max-prompts", help="Draw this many prompts, by seed.")]
