"""What every reader yields, and which columns a table is read for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechprobe.data.config import FieldName, PromptsConfig
from mechprobe.errors import InputError

_NEEDED: tuple[FieldName, ...] = ("prompt", "messages")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source, with the source's own field names.

    Attributes:
        where: Source and line or row, for errors.
        number: Of the line or row, from 1.
        fields: Name to value, as the source gives them.
    """

    where: str
    number: int
    fields: Mapping[str, Any]


def columns_to_read(config: PromptsConfig, known: Sequence[str], name: str) -> list[str]:
    """The columns of a table that prompts are made of.

    Raises:
        InputError: The one that is needed is not there, or two of the table have the name of one.
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
            raise InputError(f"{name} has {list(known).count(column)} columns '{column}'; give each a name of its own.")
    return found
