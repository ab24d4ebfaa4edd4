"""A figure as it stands in a page and as files: inline SVG with hovers, text alternative, SVG, PNG, PDF and source data."""

import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from mechprobe.formatting import inert
from mechprobe.report.figures import style
from mechprobe.report.figures.svg import Spot, inline_svg, svg_file
from mechprobe.report.figures.told import COLUMNS, Mark, Told, told

_POINTS = 72
"""Units of an SVG by matplotlib in an inch."""
_APART = 6
"""Points within which a hand cannot tell marks apart."""
_MOST = 16
"""Numbers that a text alternative has at most."""


class Drawing(NamedTuple):
    """A figure, ready to be written.

    Attributes:
        markup: SVG element for a page, without scripts, references or text that is not escaped.
        numbers: The main numbers in words, for the text alternative.
        rows: Source data, one row a number, in the columns of `mechprobe.report.figures.told.COLUMNS`.
        files: Ending → content of ``figures/NAME.<ending>``.
    """

    markup: str
    numbers: str
    rows: list[list[str | float | None]]
    files: dict[str, bytes]


def draw(figure: Figure, name: str, title: str) -> Drawing:
    """Draw a figure once and make everything from it. The same figure gives the same bytes.

    Args:
        figure: A figure whose function called `tell`.
        name: Its name, which makes the ids in the page unique.
        title: What it shows, the begin of its text alternative.
    """
    style.write_out(figure)
    found = told(figure)
    dpi = figure.dpi
    figure.set_dpi(_POINTS)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # All files have the layout of the SVG, and marks are where the SVG has them.
    numbers = _numbers(found.marks)
    alternative = inert(f"{title}. {numbers}" if numbers else title)
    drawn = _saved(figure, "svg")
    spots = list(_spots(found, figure.bbox.height))
    markup = inline_svg(name, drawn, alternative, [(kind, inert(series)) for kind, series in found.series], spots)
    files = {
        "svg": svg_file(name, drawn, alternative), "png": style.to_png(figure), "pdf": _saved(figure, "pdf"), "csv": _table(found.marks),
    }  # fmt: skip
    figure.set_dpi(dpi)
    return Drawing(markup, numbers, [mark.row for mark in found.marks], files)


def _saved(figure: Figure, form: str) -> bytes:
    """The figure as matplotlib writes it, the same bytes on every call; an SVG has no background."""
    buffer = io.BytesIO()
    none = {"svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate", "Creator", "Producer")}[form]
    # Letters as text are small, can be searched and take the color of the theme.
    with style.house_style(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "mechprobe", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=form, metadata=dict.fromkeys(none), transparent=form == "svg")
    return buffer.getvalue()


def _table(marks: list[Mark]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([["" if value is None else _cell(value) for value in mark.row] for mark in marks])
    return text.getvalue().encode("utf-8")


def _cell(value: str | float) -> str | float:
    """Text that a spreadsheet does not take for a formula."""
    if not isinstance(value, str):
        return value
    text = inert(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _spots(found: Told, height: float) -> Iterator[Spot]:
    """Where a hand finds the marks in the SVG; of marks of one name that lie upon each other only the first."""
    taken = set()
    for mark in sorted(found.marks, key=lambda mark: not mark.main):
        x, y = mark.axes.transData.transform(mark.place)
        box = mark.axes.bbox
        if not (mark.hover and box.x0 - 4 <= x <= box.x1 + 4 and box.y0 - 4 <= y <= box.y1 + 4):
            continue
        cell = (mark.axes, mark.series, mark.name, x // _APART, y // _APART)
        if cell not in taken:
            taken.add(cell)
            yield Spot(x, height - y, tuple(map(found.series.index, mark.series)), "\n".join(map(inert, mark.lines)))


def _numbers(marks: list[Mark]) -> str:
    """The main numbers: those that the figure calls so, else all of few ones, else the last of every series in a panel."""
    chosen = [mark for mark in marks if mark.main]
    if not chosen:
        chosen = marks if len(marks) <= _MOST else list({(mark.axes, mark.series): mark for mark in marks}.values())
    parts, panel = [], None
    for mark in chosen[:_MOST]:
        head = f"{mark.panel}: " if mark.panel and mark.panel != panel else ""
        panel = mark.panel
        parts.append(inert(f"{head}{mark.text}"))
    left = len(marks) - len(parts)
    return "; ".join(parts) + "." + (f" {left} more numbers are in the source data." if left else "") if parts else ""
