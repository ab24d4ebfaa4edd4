"""Records of prompt sources, and their conversion to prompts. Every field is checked; errors name the record's place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechprobe.data.config import FieldName, PromptsConfig
from mechprobe.data.prompts import Message, Prompt
from mechprobe.errors import InputError

ROLES = ("system", "user", "assistant", "tool", "developer")
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


def columns_to_read(config: PromptsConfig, known: Sequence[str], name: str) -> list[str]:
    """Columns of a table that contain fields of prompts.

    Raises:
        InputError: A required column is missing, or the name of a column is not unique.
    """
    columns = config.columns()
    for needed in _NEEDED:
        column = columns.get(needed)
        if column and column not in known:
            found = ", ".join(sorted(known)) or "none"
            raise InputError(f"{name} has no column '{column}' (it has {found}); set prompts.{needed}_field.")
    found = [column for column in columns.values() if column in known]
    for column in found:
        if list(known).count(column) > 1:
            raise InputError(f"{name} has {list(known).count(column)} columns named '{column}'; rename all but one.")
    return found


def to_prompt(record: Record, config: PromptsConfig) -> Prompt:
    """Convert a record to a prompt.

    Raises:
        InputError: A field is missing, empty or of the wrong type; the message names the place.
    """
    fields: dict[FieldName, Any] = {name: _cell(record, column) for name, column in config.columns().items()}
    messages: tuple[Message, ...] | None = None
    response = _optional(fields, "response", config, record)
    if config.messages_field:
        messages = _messages(record, config.messages_field, fields["messages"])
        if messages[-1].role == "assistant":
            if response is not None:
                raise InputError(
                    f"{record.where}: the last message in '{config.messages_field}' is a response of the assistant, "
                    f"and '{config.response_field}' holds one too; remove one of them."
                )
            *rest, last = messages
            messages, response = tuple(rest), last.content
            if not messages:
                raise InputError(f"{record.where}: '{config.messages_field}' has only a response; add a user message.")
        prompt = messages[-1].content
    else:
        prompt = _text(_present(fields["prompt"], config.prompt_field, record), config.prompt_field, record.where)
    return Prompt(
        id=_identifier(fields["id"], config.id_field, record),
        prompt=prompt,
        response=response,
        task=_optional(fields, "task", config, record),
        messages=messages,
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
    if not isinstance(value, str):
        raise InputError(f"{where}: '{name}' is a {type(value).__name__}; it must be text.")
    if not value.strip():
        raise InputError(f"{where}: '{name}' is empty; fill it in or remove the record.")
    if not encodable(value):
        raise InputError(f"{where}: '{name}' has half a surrogate pair, which is not a character; correct it.")
    return value


def encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text. JSON and Python allow half a surrogate pair, which tokenizers reject."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _optional(fields: Mapping[FieldName, Any], name: FieldName, config: PromptsConfig, record: Record) -> str | None:
    return None if fields[name] is None else _text(fields[name], config.columns()[name], record.where)


def _identifier(value: Any, column: str, record: Record) -> str:
    if value is None:
        return str(record.number)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, column, record.where)


def _messages(record: Record, column: str, value: Any) -> tuple[Message, ...]:
    if _present(value, column, record) is None or value == []:
        raise InputError(f"{record.where}: '{column}' is empty; fill it in or remove the record.")
    if not isinstance(value, list):
        raise InputError(f"{record.where}: '{column}' is a {type(value).__name__}; it must be a list of messages.")
    return tuple(_message(f"{column}[{number}]", item, record.where) for number, item in enumerate(value))


def _message(name: str, item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: '{name}' is a {type(item).__name__}; it must be an object with role and content.")
    missing = [part for part in ("role", "content") if part not in item]
    if missing:
        found = ", ".join(sorted(map(str, item))) or "nothing"
        raise InputError(f"{where}: '{name}' has no '{missing[0]}' (it has {found}); add it.")
    message = Message(*(_text(item[part], f"{name}.{part}", where) for part in ("role", "content")))
    if message.role not in ROLES:
        raise InputError(f"{where}: '{name}' has the unknown role {message.role!r}; the roles are {', '.join(ROLES)}.")
    return message
