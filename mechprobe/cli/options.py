"""Options of prompts and models that several commands have, and the settings that they stand for."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mechprobe.errors import ConfigError
from mechprobe.json_fields import printable_models

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


def parse_models(pairs: Sequence[str], *, option: str = "--models") -> dict[str, str]:
    """``["base=PATH", ...]`` as a dict; `ConfigError` for a missing ``=`` or a name given twice."""
    models: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"{option} {pair!r} cannot be read; write NAME=PATH, for example base=models/base.")
        if name in models:
            raise ConfigError(f"{option} names '{name}' twice; give each model one name.")
        models[name] = path
    printable_models(models, option)
    return models


def prompt_settings(
    file: str | None, format_: str | None = None, split: str | None = None, fields: Sequence[str] | None = None
) -> dict[str, Any]:
    """The section ``prompts`` that the prompt options give.

    Raises:
        ConfigError: A ``--field`` is not NAME=COLUMN.
    """
    section: dict[str, Any] = {"file": file, "format": format_, "split": split}
    for pair in fields or ():
        name, equals, column = pair.partition("=")
        if not equals or name not in ("prompt", "response", "task", "id", "messages"):
            raise ConfigError(
                f"--field {pair!r} cannot be read; write NAME=COLUMN, NAME one of prompt, response, task, id, messages."
            )
        section[f"{name}_field"] = column
    given = {key: value for key, value in section.items() if value is not None}
    return {"prompts": given} if given else {}


def device_map_setting(text: str | None) -> dict[str, Any]:
    """The setting that ``--device-map`` gives; its text is a name such as ``auto``, or a TOML table."""
    from mechprobe.config import parse_value

    return {} if text is None else {"device_map": parse_value(text)}
