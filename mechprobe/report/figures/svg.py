"""The SVG of matplotlib made small and fit for a page: attributes instead of styles, colors of the theme, ids of one figure."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from mechprobe.report.figures import style
from mechprobe.report.figures.told import GID

_XLINK = "{http://www.w3.org/1999/xlink}href"
_SVG = "{http://www.w3.org/2000/svg}"
_ELEMENTS = {"g", "path", "use", "text", "tspan", "defs", "clipPath", "rect"}
_ATTRIBUTES = ("d", "x", "y", "width", "height", "transform", "clip-path")
_STYLES = (
    "fill", "fill-opacity", "fill-rule", "stroke", "stroke-width", "stroke-opacity", "stroke-linecap", "stroke-linejoin",
    "stroke-dasharray", "stroke-dashoffset", "stroke-miterlimit", "opacity", "text-anchor", "font-size", "font-weight", "font-style",
)  # fmt: skip
_INHERITED = {
    "stroke-linecap": "butt",
    "stroke-linejoin": "round",
    "font-weight": "400",
    "font-style": "normal",
    "text-anchor": "start",
}
# Verdana has the widths of DejaVu Sans, so that labels fit where that is not installed.
_ROOT = 'font-family="DejaVu Sans, Verdana, Geneva, sans-serif" stroke-linejoin="round" stroke-linecap="butt"'
_FONT = re.compile(r"(?:(italic|oblique) )?(?:(bold|\d{3}) )?([\d.]+)px ")
_REFERENCE = re.compile(r"url\(#([\w-]+)\)")
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_VARIABLES = {
    style.INK: "ink", "#000000": "ink", style.GREY: "grey", style.LIGHT: "light", style.PAPER: "paper", style.GRID: "grid",
    style.SHADE: "shade", style.BASE: "base", style.BLUE: "blue", style.ORANGE: "orange", style.GREEN: "green", style.PURPLE: "purple",
    style.SKY: "sky", style.RED: "red", style.YELLOW: "yellow",
}  # fmt: skip
"""Color of the figures → its variable in `mechprobe.report.pages.theme`, which has another value in the dark theme."""
_PIXELS = 96 / 72
"""Pixels of a page in a point."""


class Spot(NamedTuple):
    """A mark that a hand can reach: its place in points, the numbers of its series, and the text of its hover."""

    x: float
    y: float
    series: tuple[int, ...]
    text: str


def inline_svg(
    name: str, drawn: bytes, alternative: str, series: Sequence[tuple[str, str]], spots: Iterable[Spot]
) -> str:
    """Markup for a page: no script, no style, no reference outside itself, and colors that follow the theme of the page.

    Args:
        name: Name of the figure, with which its ids begin.
        drawn: What matplotlib wrote.
        alternative: Text alternative.
        series: Kind and name of what a reader can hide; the script of the page makes buttons of them.
        spots: Marks with a hover; each is a circle with its text as ``<title>``, which browsers show without any script.
    """
    root = ElementTree.fromstring(drawn)
    circles = "".join(
        f'<circle cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="5"{_within(spot.series)}><title>{escape(spot.text)}</title></circle>'
        for spot in spots
    )
    marks = f'<g class="marks" fill="none" pointer-events="all">{circles}</g>' if circles else ""
    body = "".join(_Writer(name, root, theme=True).content(root))
    return (
        f'<svg class="chart" {_size(root)} role="img" aria-label={_quoted(alternative)} data-series={_quoted(json.dumps(list(series)))}>'
        f"<g {_ROOT}>{body}</g>{marks}</svg>"
    )


def svg_file(name: str, drawn: bytes, alternative: str) -> bytes:
    """The same picture as a file, light and with a white background."""
    root = ElementTree.fromstring(drawn)
    body = "".join(_Writer(name, root, theme=False).content(root))
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    background = f'<rect width="100%" height="100%" fill="{style.PAPER}"/>'
    head = f'<svg {names} {_size(root)} role="img" aria-label={_quoted(alternative)}>'
    return f"{head}<desc>{escape(alternative)}</desc>{background}<g {_ROOT}>{body}</g></svg>\n".encode()


def themed(color: str) -> str:
    """A color as the variable of the page; where the page has none, it is itself."""
    variable = _VARIABLES.get(color)
    return f"var(--chart-{variable},{color})" if variable else color


def _quoted(text: str) -> str:
    return quoteattr(text, {"\n": "&#10;"})


def _size(root: ElementTree.Element) -> str:
    width, height = (float(part) for part in root.attrib["viewBox"].split()[2:])
    return f'viewBox="0 0 {width:g} {height:g}" width="{width * _PIXELS:.0f}" height="{height * _PIXELS:.0f}"'


def _within(series: Sequence[int]) -> str:
    return f' data-in="{" ".join(map(str, series))}"' if series else ""


class _Writer:
    """Writes the elements of one picture."""

    def __init__(self, name: str, root: ElementTree.Element, *, theme: bool) -> None:
        found = (_references(value) for element in root.iter() for value in element.attrib.values())
        used = dict.fromkeys(reference for references in found for reference in references)
        self.ids = {reference: f"{name}-{place}" for place, reference in enumerate(used)}
        self.theme = theme

    def content(self, element: ElementTree.Element) -> Iterator[str]:
        """Everything inside an element; comments, metadata and styles are left out."""
        for child in element:
            tag = child.tag.removeprefix(_SVG)
            if tag in ("metadata", "style"):
                continue
            assert tag in _ELEMENTS, f"A figure has an element {tag}, which a page must not have."
            yield self._element(tag, child)

    def _element(self, tag: str, element: ElementTree.Element) -> str:
        inner = "".join(self.content(element)) or (escape(element.text or "") if tag in ("text", "tspan") else "")
        attributes = "".join(f" {name}={_quoted(value)}" for name, value in self._attributes(element))
        if tag in ("g", "defs") and not inner:
            return ""
        if tag == "g" and not attributes:
            return inner
        return f"<{tag}{attributes}>{inner}</{tag}>" if inner else f"<{tag}{attributes}/>"

    def _attributes(self, element: ElementTree.Element) -> Iterator[tuple[str, str]]:
        own = element.get("id", "")
        if own in self.ids:
            yield "id", self.ids[own]
        if own.startswith(GID) and self.theme:
            yield "data-in", own.removeprefix(GID).replace("-", " ")
        if _XLINK in element.attrib:
            yield "xlink:href", f"#{self.ids[element.attrib[_XLINK].removeprefix('#')]}"
        for name in _ATTRIBUTES:
            value = _REFERENCE.sub(lambda found: f"url(#{self.ids[found[1]]})", element.get(name, ""))
            if value := _rounded(value):
                yield name, value
        for name, value in _styles(element).items():
            if name in _STYLES and _INHERITED.get(name) != value:
                yield name, themed(value) if self.theme else value


def _styles(element: ElementTree.Element) -> dict[str, str]:
    """The style of an element; of a font only its size and weight."""
    found = dict(part.strip().split(": ", 1) for part in element.get("style", "").split(";") if ": " in part)
    if font := _FONT.match(found.pop("font", "")):
        found |= {
            name: value
            for name, value in zip(("font-style", "font-weight", "font-size"), font.groups(), strict=True)
            if value
        }
    return found | {name: element.attrib[name] for name in _STYLES if name in element.attrib}


def _references(value: str) -> list[str]:
    return [value[1:]] if re.fullmatch(r"#[\w-]{8,}", value) else _REFERENCE.findall(value)


def _rounded(text: str) -> str:
    """Numbers of a path or of a transform with two decimals, without a rotation by nothing."""
    text = _NUMBER.sub(lambda found: f"{round(float(found[0]), 2) + 0.0:.7g}", " ".join(text.split()))
    return re.sub(r" ?rotate\(-?0 [-\d. ]+\)", "", text)
