"""Records, which every reader yields, and the columns that are read from tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechprobe.data.config import FieldName, PromptsConfig
from mechprobe.errors import InputError

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
