"""Colors, markers and sizes of all figures.

The colors are those of Okabe and Ito, which color-blind readers can tell apart, made darker where their contrast on white is below 3:1.
"""

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mechprobe.dynamics.order import log_axis, steps_at
from mechprobe.formatting import number

DPI = 160
NOT_MEASURED = (None, None, None)
"""Interval of a task that was not measured."""

NOTHING = "no number above 0 to draw"
"""What a logarithmic panel without any number above 0 says."""

NO_NUMBER = "no number to draw"
"""What a panel without any number says."""

INK = "#222222"
CELL_INK, CELL_PAPER = "#1a1a1a", "#fefefe"
"""Text on a pale and on a dark cell, which have the same color in both themes."""
GREY, LIGHT, BASE, GRID, SHADE, PAPER = "#767676", "#d5d5d5", "#5a5a5a", "#e6e6e6", "#f1f1f1", "#ffffff"
"""``SHADE`` is a strip behind marks."""
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW = (
    "#0072b2", "#c77f00", "#008763", "#b65c8d", "#2f8fc7", "#c85400", "#9a8b00",
)  # fmt: skip
SERIES = (BASE, GREY, BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW)
"""Colors of marks."""
_KNOWN = {"base": BASE, "sft": ORANGE, "rl": BLUE}
_CYCLE = (GREEN, PURPLE, SKY, RED, YELLOW)
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")

_FONT = "DejaVu Sans"

_RC: Any = {
    "font.family": [_FONT],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def model_colors(names: Sequence[str]) -> dict[str, str]:
    """A color for every model; models of one name have the same color in every figure."""
    others = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _CYCLE[others.index(name) % len(_CYCLE)] for name in names}


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the matplotlib settings of the report."""
    with mpl.rc_context(_RC):
        yield


def plain(text: str) -> str:
    r"""A text that matplotlib draws literally, within `house_style`.

    A character that the font lacks is drawn with an installed font that has it. If none has it, its code point is written
    out, such as ``\u7b97``: matplotlib would draw one box for every character of a script, so that names look equal.
    """
    return "".join(map(_written_out, text)).replace("$", r"\$")


def _written_out(char: str) -> str:
    return char if char == "\n" or _drawable(char) else char.encode("unicode_escape").decode()


def labels(names: Sequence[str], *, width: int = 16, lines: int = 3) -> list[str]:
    """Labels of names: wrapped at blanks and signs to ``lines`` of ``width`` characters; longer ones lose their middle.

    Different names have different labels: those that would be equal get a number.
    """
    found: list[str] = []
    for name in names:
        label = _wrapped(plain(unicodedata.normalize("NFC", name)), width, lines)
        n = sum(_alike(other, label) for other in found)
        found.append(f"{label} ({n + 1})" if n else label)
    return found


def title_of(text: str) -> str:
    """The title of a panel, wrapped so that it does not run into the next panel."""
    return labels([text], width=46)[0]


def _alike(label: str, other: str) -> bool:
    return label == other or re.sub(r" \(\d+\)$", "", label) == other


def _wrapped(text: str, width: int, lines: int) -> str:
    if len(text) > width * lines:
        signs, half = re.findall(_SIGN, text, re.DOTALL), width * lines // 2 - 1
        head, tail = (
            "".join(signs[: _fitting(signs, half)]),
            "".join(signs[len(signs) - _fitting(signs[::-1], half) :]),
        )
        text = f"{head}…{tail}"
    rows = [""]
    for word in re.findall(rf"\n|(?:(?![\s_/.:-]){_SIGN})*[\s_/.:-]+|(?:(?![\s_/.:-]){_SIGN})+", text):
        # A word that is longer than a line is broken between signs.
        for part in [word] if len(word.rstrip()) <= width else re.findall(_SIGN, word, re.DOTALL):
            if rows[-1] and len(rows[-1] + part.rstrip()) > width:
                rows.append("")
            rows[-1] += part
    return "\n".join(row.rstrip(" ") for row in rows)


_SIGN = r"(?:\\\$|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}|\\x[0-9a-f]{2}|.)"
"""A character of a label, or the code point that stands for one."""


def _fitting(signs: Sequence[str], room: int) -> int:
    """Number of first signs with at most ``room`` characters."""
    return sum(total <= room for total in accumulate(map(len, signs)))


def _drawable(char: str) -> bool:
    """Whether a font has the character; an installed fallback font joins the fonts of the `house_style` in force."""
    if unicodedata.category(char)[0] == "C" or (unicodedata.category(char)[0] == "Z" and char != " "):
        return False
    family = _font_with(ord(char))
    if family and family not in mpl.rcParams["font.family"]:
        mpl.rcParams["font.family"] = [*mpl.rcParams["font.family"], family]
    return family is not None


@lru_cache(maxsize=4096)
def _font_with(code: int) -> str | None:
    """The first installed upright font family that can draw a character; `_FONT` before the others in alphabetical order."""
    fonts = sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name != _FONT, font.name, font.fname))
    for font in fonts:
        stands_for_others = font.name.startswith("Last Resort") or "Emoji" in font.name
        if font.style == "normal" and not stands_for_others and code in _characters(font.fname):
            return font.name
    return None


@lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[int]:
    """Code points that a font file has; none if it cannot be read."""
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def new_figure(width: float | int, height: float | int) -> Figure:
    """A figure that pyplot does not keep in memory."""
    return Figure(figsize=(width, height), layout="constrained")


def percent_axis(axes: Axes, label: str, *, low: float | None = 0.0, high: float | None = 100.0) -> None:
    """Label a y axis in percent and set its limits."""
    axes.set_ylabel(label)
    axes.set_ylim(low, high)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], *, below: bool = False) -> None:
    """A legend above or below all panels, with as many columns as the width of the figure holds."""
    widths = [5.4 * max(map(len, name.split("\n"))) + 42 for name in names]
    room = 72 * figure.get_figwidth()

    def needed(columns: int) -> float:
        return sum(float(part.max()) for part in np.array_split(np.array(widths), columns) if len(part))

    columns = next((n for n in range(min(8, len(names)), 1, -1) if needed(n) <= room), 1)
    lines = -(-len(names) // columns) * max((name.count("\n") + 1 for name in names), default=1)
    # More than two lines would take their room from the panels.
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, lines - 2))
    place = "outside lower center" if below else "outside upper center"
    figure.legend(handles, names, loc=place, ncols=columns)


def log_y(axes: Axes) -> None:
    """Make the y axis of a drawn panel logarithmic; a panel without a number above 0 says so and stays linear."""
    if not np.isfinite(axes.dataLim.minposy):
        axes.text(0.5, 0.5, NOTHING, transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    logarithmic(axes.yaxis)


def say_nothing_drawn(axes: Axes) -> None:
    """Say in a panel that it has no number."""
    axes.text(0.5, 0.5, NO_NUMBER, transform=axes.transAxes, ha="center", va="center", color=GREY)


def logarithmic(axis: XAxis | YAxis) -> None:
    """Make one axis logarithmic, with plain numbers as ticks, also between the powers of ten where there are few of these."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    powers = np.log10(high / low)
    between = (*range(1, 10), 1.5, 2.5) if powers < 0.7 else (1, 2, 5) if powers < 2 else (1, 3) if powers < 3 else (1,)
    axis.set_major_locator(LogLocator(base=10, subs=between, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 10_000 else f"{value:,.0f}"))
    axis.set_minor_locator(NullLocator())


def dots(axes: Axes, x: np.ndarray, y: np.ndarray, *, size: float | int) -> PathPatch:
    """Many gray points as one path, which keeps an SVG small: lines of almost no length with round ends, ``size`` points wide."""
    finite = np.isfinite(np.asarray(x, dtype=float) + np.asarray(y, dtype=float))
    places = np.column_stack([np.asarray(x, dtype=float)[finite], np.asarray(y, dtype=float)[finite]])
    # Not every program draws the ends of a line of no length.
    ends = np.repeat(places, 2, axis=0) + np.tile([[0.0, 0.0], [1e-4, 0.0]], (len(places), 1))
    path = Path(
        ends if len(ends) else [(np.nan, np.nan)],
        np.tile([Path.MOVETO, Path.LINETO], len(places)) if len(ends) else None,
    )
    path.should_simplify = False
    patch = PathPatch(path, fill=False, edgecolor=GREY, alpha=0.55, linewidth=size, capstyle="round", zorder=2)
    axes.add_patch(patch)
    axes.update_datalim(places)
    return patch


def cells_of(axes: Axes, values: np.ndarray, *, top: float | int = 1.0) -> QuadMesh:
    """Cells ``[row, column]`` from pale at 0 to dark at ``top``, the first row above, as shapes rather than as an image."""
    rows, columns = values.shape
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    blues = mpl.colormaps["Blues"].resampled(48)
    mesh = axes.pcolormesh(
        *edges, np.ma.masked_invalid(values), vmin=0, vmax=top, cmap=blues, edgecolors="face", linewidth=0.2
    )
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return mesh


def step_scale(axes: Axes, first: float | int, last: float | int) -> None:
    """Make the x axis one of steps or tokens: linear from base at 0 to the ``first`` checkpoint, and logarithmic to the ``last`` one.

    It is the axis on which `mechprobe.dynamics.order` interpolates. Ticks are base, the first step, and its doublings, thinned to
    at most eight.
    """
    axes.set_xscale("function", functions=(lambda step: log_axis(step, first), lambda place: steps_at(place, first)))
    axes.set_xlim(-0.25 * first, last * 1.06)
    doublings = np.array([first * 2**power for power in range(int(np.log2(max(1.0, last / first))) + 1)])
    ticks = [0.0, *doublings[:: -(-len(doublings) // 7)].tolist()]
    axes.set_xticks(ticks, [_short_number(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _short_number(value: float | int) -> str:
    """``12,800``, and ``1.28M`` for numbers of six digits or more."""
    if value < 100_000:
        return f"{value:,.0f}"
    power = min(3, int(np.log10(value)) // 3)
    return f"{value / 1000**power:.3g}{' kMG'[power]}"


def color_bar(figure: Figure, image: Any, panels: Any, shrink: float, label: str) -> None:
    """A bar that names the colors of ``image``, without the hairlines that SVG has between its steps."""
    bar = figure.colorbar(image, ax=panels, shrink=shrink, label=label)
    assert bar.solids is not None
    bar.solids.set_edgecolor("face")


def error_bars(intervals: Sequence[Sequence[Any]], scale: float = 100) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[n]``, and lengths ``[2, n]`` of the bars below and above them, from ``[value, low, high, ...]`` each.

    Both are multiplied by ``scale``; the default converts shares to percent. None is a missing number.
    """
    values, low, high = (np.array([number(item[part]) for item in intervals]) * scale for part in range(3))
    return values, np.nan_to_num(np.vstack([values - low, high - values]), nan=0).clip(min=0)


def write_out(figure: Figure) -> None:
    """Write out the characters, in names that a figure drew without `plain`, that no font has."""
    with house_style():
        for text in figure.findobj(Text):
            found = text.get_text() if isinstance(text, Text) else ""
            if isinstance(text, Text) and not (found.isascii() and found.replace("\n", "").isprintable()):
                text.set_text("".join(map(_written_out, found)))
                text.set_fontfamily(mpl.rcParams["font.family"])


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file, with the same bytes on every call."""
    buffer = io.BytesIO()
    write_out(figure)
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
