"""Records of prompt sources, and their conversion to prompts. Every field is checked; errors name the record's place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechprobe.data.config import FieldName, PromptsConfig
from mechprobe.data.messages import Message, content_text, is_plain, read_messages
from mechprobe.data.prompts import Prompt
from mechprobe.errors import InputError
from mechprobe.json_fields import full_text, printable_name

_NEEDED: tuple[FieldName, ...] = ("prompt", "messages")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source, with the field names of the source.

    Attributes:
        where: Source and line or row, for error messages.
        number: Number of the line or row, from 1.
        fields: Name to value, as the source contains them.
    """

    where: str
    number: int
    fields: Mapping[str, Any]


def columns_to_read(config: PromptsConfig, known: Sequence[str], name: str, also: Sequence[str] = ()) -> list[str]:
    """Columns of a table that contain fields of prompts, and those of ``also`` that it has.

    Raises:
        InputError: A required column is missing, or the name of a column is not unique.
    """
    columns = config.for_columns(known).columns()
    for needed in _NEEDED:
        column = columns.get(needed)
        if column and column not in known:
            found = ", ".join(sorted(known)) or "none"
            raise InputError(f"{name} has no column '{column}' (it has {found}); set prompts.{needed}_field.")
    found = [column for column in dict.fromkeys([*columns.values(), *also]) if column in known]
    for column in found:
        if list(known).count(column) > 1:
            raise InputError(f"{name} has {list(known).count(column)} columns named '{column}'; rename all but one.")
    return found


def to_prompt(record: Record, config: PromptsConfig) -> Prompt:
    """Convert a record to a prompt.

    Raises:
        InputError: A field is missing, empty or of the wrong type; the message names the place.
    """
    config = config.for_columns(record.fields)
    fields: dict[FieldName, Any] = {name: _cell(record, column) for name, column in config.columns().items()}
    messages: tuple[Message, ...] | None = None
    reply: Message | None = None
    response = _optional(fields, "response", config, record)
    if config.messages_field:
        column = config.messages_field
        messages = read_messages(_present(fields["messages"], column, record), column, record.where)
        if messages[-1]["role"] == "assistant":
            if response is not None:
                raise InputError(
                    f"{record.where}: the last message in '{column}' is a response of the assistant, "
                    f"and '{config.response_field}' holds one too; remove one of them."
                )
            *rest, last = messages
            messages, response = tuple(rest), content_text(last)
            reply = None if is_plain(last) else last
            if not messages:
                raise InputError(f"{record.where}: '{column}' has only a response; add a user message.")
        prompt = content_text(messages[-1])
    else:
        prompt = _text(_present(fields["prompt"], config.prompt_field, record), config.prompt_field, record.where)
    task = _optional(fields, "task", config, record)
    return Prompt(
        id=printable_name(_identifier(fields["id"], config.id_field, record), config.id_field, record.where),
        prompt=prompt,
        response=response,
        task=None if task is None else printable_name(task, config.task_field, record.where),
        messages=messages,
        reply=reply,
        where=record.where,
    )


def _cell(record: Record, column: str) -> Any:
    """Value of a column; None if the column is absent or its cell is empty (None, NaN)."""
    value = record.fields.get(column) if column else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _present(value: Any, column: str, record: Record) -> Any:
    if value is None and column not in record.fields:
        found = ", ".join(sorted(map(str, record.fields))) or "nothing"
        raise InputError(f"{record.where} has no field '{column}' (it has {found}); add it, or choose another field.")
    return value


def _text(value: Any, name: str, where: str) -> str:
    if value is None:
        raise InputError(f"{where}: '{name}' is empty (null or NaN); fill it in or remove the record.")
    return full_text(value, name, where)


def _optional(fields: Mapping[FieldName, Any], name: FieldName, config: PromptsConfig, record: Record) -> str | None:
    return None if fields[name] is None else _text(fields[name], config.columns()[name], record.where)


def _identifier(value: Any, column: str, record: Record) -> str:
    if value is None:
        return str(record.number)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, column, record.where)
