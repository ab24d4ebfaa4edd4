"""A figure as it stands in a page and as files: inline SVG with hovers, text alternative, SVG, PNG, PDF and source data."""

import csv
import io
import json
import re
from html import escape
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from mechprobe.formatting import inert
from mechprobe.report.figures import style
from mechprobe.report.figures.told import COLUMNS, GID, Mark, told

_POINTS, _PIXELS = 72, 96
"""Per inch: the units of an SVG by matplotlib, and of a page."""
_MOST = 12
"""Numbers that a text alternative has at most."""
_VARIABLES = {
    style.INK: "ink", "#000000": "ink", style.GREY: "grey", style.LIGHT: "light", "#ffffff": "paper", "#e6e6e6": "grid", "#f1f1f1": "grid",
    "#5a5a5a": "base", style.BLUE: "blue", style.ORANGE: "orange", style.GREEN: "green", style.PURPLE: "purple", style.SKY: "sky",
    style.RED: "red", style.YELLOW: "yellow",
}  # fmt: skip
"""Colour of the figures → its variable in ``chart.css``, which has another value in the dark theme."""


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
    height = figure.bbox.height
    places = [_place(mark, height) for mark in found.marks]
    files = {
        "svg": _saved(figure, "svg"),
        "png": style.to_png(figure),
        "pdf": _saved(figure, "pdf"),
        "csv": _table(found.marks),
    }
    figure.set_dpi(dpi)
    numbers = _numbers(found.marks)
    alternative = f"{title}. {numbers}" if numbers else title
    overlay = "".join(
        _circle(mark, place, found.series) for mark, place in zip(found.marks, places, strict=True) if mark.hover
    )
    markup = _inline(files["svg"].decode("utf-8"), name, alternative, found.series, overlay)
    return Drawing(markup, numbers, [mark.row for mark in found.marks], files)


def _saved(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}[form]
    # Letters as outlines look alike in every browser, and no text of a model is left in the file as text.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "mechprobe", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=form, metadata=metadata)
    data = buffer.getvalue()
    return _without_words(data.decode("utf-8")).encode() if form == "svg" else data


def _without_words(svg: str) -> str:
    """The SVG without comments, which hold every text, and without metadata."""
    return re.sub(r"<!--.*?-->\n?|<metadata>.*?</metadata>\n?", "", svg, flags=re.DOTALL)


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


def _place(mark: Mark, height: float) -> tuple[float, float]:
    x, y = mark.axes.transData.transform(mark.place)
    return x, height - y


def _circle(mark: Mark, place: tuple[float, float], series: list[str]) -> str:
    x, y = place
    if not (abs(x) < 1e5 and abs(y) < 1e5):
        return ""
    numbers = " ".join(str(series.index(name)) for name in mark.series)
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" data-in="{numbers}"><title>{escape(inert(mark.text))}</title></circle>'


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


def _inline(svg: str, name: str, alternative: str, series: list[str], overlay: str) -> str:
    """The SVG as an element of a page: unique ids, colours of the theme, marks for hovers."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    body = re.sub(r'<style type="text/css">.*?</style>', "", body, flags=re.DOTALL)
    body = re.sub(rf'<g id="{GID}([0-9-]+)">', lambda found: f'<g data-in="{found[1].replace("-", " ")}">', body)
    used = set(re.findall(r'xlink:href="#([^"]+)"', body)) | set(re.findall(r"url\(#([^)]+)\)", body))
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = body.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r": (#[0-9a-f]{6})", _themed, body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    width, height = (float(part) * _PIXELS / _POINTS for part in box[1].split()[2:])
    marks = f'<g class="marks">{overlay}</g>' if overlay else ""
    names = escape(json.dumps([inert(one) for one in series]))
    return (
        f'<svg class="chart" viewBox="{box[1]}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(inert(alternative))}" data-series="{names}">'
        f"{body.replace('</svg>', '').strip()}{marks}</svg>"
    )


def _themed(found: re.Match[str]) -> str:
    variable = _VARIABLES_LOWER.get(found[1])
    return f": var(--chart-{variable}, {found[1]})" if variable else found[0]


_VARIABLES_LOWER = {color.lower(): variable for color, variable in _VARIABLES.items()}
