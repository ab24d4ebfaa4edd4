"""How results look in a terminal and in a notebook: a short text, an HTML table and a figure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from html import escape
from importlib import import_module
from itertools import islice
from math import isnan
from typing import TYPE_CHECKING, Any

from mechprobe.environment import require
from mechprobe.errors import DependencyError
from mechprobe.formatting import MISSING, inert

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "mechprobe.report.figures.results"
"""The module whose ``figure_of`` draws a result. It knows all results and belongs to the report, so it is loaded by its name."""

_MOST_CHARS, _FIELD_CHARS = 240, 80
_MOST_ROWS, _MOST_COLUMNS = 20, 12


class Displayed:
    """Base of what a person looks at: `repr`, ``_repr_html_`` and `plot`. A dataclass needs ``repr=False``.

    A subclass may say in ``_in_short`` what its text contains, and in ``to_pandas`` what its table contains.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_cut(inert(self._in_short()), _MOST_CHARS)})"

    def __str__(self) -> str:
        return repr(self)

    def _in_short(self) -> str:
        """The main content in one line; by default every field, with only the size of long ones."""
        return ", ".join(f"{name}={_field_text(value)}" for name, value in _fields(self))

    def _repr_html_(self) -> str:
        """The text and the table, for notebooks. All text is escaped."""
        head = f"<p><b>{type(self).__name__}</b>: {escape(_cut(inert(self._in_short()), _MOST_CHARS))}</p>"
        return f'<div style="overflow-x:auto">{head}{self._table_html()}</div>'

    def _table_html(self) -> str:
        to_pandas = getattr(self, "to_pandas", None)
        try:
            frame = None if to_pandas is None else to_pandas()
        except DependencyError:  # the table is the only part that needs pandas
            frame = None
        if frame is None:
            return _html_table(("field", "value"), [(name, _field_text(value)) for name, value in _fields(self)])
        columns = list(frame.columns)[:_MOST_COLUMNS]
        rows = islice(frame[columns].itertuples(index=False, name=None), _MOST_ROWS)
        left_out = [
            f"{n:,} more {what}"
            for n, what in ((len(frame) - _MOST_ROWS, "rows"), (len(frame.columns) - _MOST_COLUMNS, "columns"))
            if n > 0
        ]
        note = f"<p>{' and '.join(left_out)} in <code>to_pandas()</code></p>" if left_out else ""
        return _html_table(columns, rows) + note

    def plot(self) -> "Figure":
        """The main figure of this result, as the report draws it; a notebook shows it, and ``savefig`` writes it.

        Raises:
            InputError: There is no figure of such a result.
            DependencyError: matplotlib is not installed.
        """
        require("matplotlib", "A figure")
        figure = import_module(FIGURES).figure_of(self)
        figure._repr_png_ = partial(_png, figure)  # notebooks show a figure without pyplot only if it has this method
        return figure


def columns_of(name: str, interval: Sequence[float]) -> dict[str, float]:
    """``[value, low, high, ...]`` as the columns ``name``, ``name_low`` and ``name_high`` of a table."""
    return {name: interval[0], f"{name}_low": interval[1], f"{name}_high": interval[2]}


def _png(figure: "Figure") -> bytes:
    return import_module("mechprobe.report.figures.style").to_png(figure)


def _fields(value: Any) -> Iterable[tuple[str, Any]]:
    """The fields of a dataclass or of a pydantic model, or the public attributes of another object."""
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    names = getattr(type(value), "model_fields", None) or [name for name in vars(value) if not name.startswith("_")]
    return [(name, getattr(value, name)) for name in names]


def _field_text(value: Any) -> str:
    """A value as Python writes it; a long text is cut, and of a long collection only the size is given."""
    text = repr(value)
    if len(text) <= _FIELD_CHARS:
        return text
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return f"<{len(value)} items>"
    return _cut(text, _FIELD_CHARS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _html_table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(_cell(cell))}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    """A cell as text: four significant digits, a dash for what is missing."""
    if value is None or (isinstance(value, float) and isnan(value)):
        return MISSING
    if isinstance(value, float):
        return f"{value:.4g}"
    return _cut(inert(value if isinstance(value, str) else repr(value)), _FIELD_CHARS)
