"""Colors, markers and sizes of all figures. The colors are those of Okabe and Ito, which color-blind readers can tell apart."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechprobe.formatting import number

DPI = 160
NOT_MEASURED = (None, None, None)
"""Interval of a task that was not measured."""

INK = "#222222"
GREY = "#8a8a8a"
LIGHT = "#d5d5d5"
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
)  # fmt: skip
_KNOWN = {"base": "#5a5a5a", "sft": ORANGE, "rl": BLUE}
_CYCLE = (GREEN, PURPLE, SKY, RED, YELLOW)
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")

_RC: Any = {
    "font.family": "DejaVu Sans",
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
    "grid.color": "#e6e6e6",
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
    """A text that matplotlib draws literally and does not parse as a formula."""
    return text.replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not keep in memory."""
    return Figure(figsize=(width, height), layout="constrained")


def percent_axis(axes: Axes, label: str, *, low: float | None = 0.0, high: float | None = 100.0) -> None:
    """Label a y axis in percent and set its limits."""
    axes.set_ylabel(label)
    axes.set_ylim(low, high)


def error_bars(intervals: Sequence[Sequence[Any]], scale: float = 100) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[n]``, and lengths ``[2, n]`` of the bars below and above them, from ``[value, low, high, ...]`` each.

    Both are multiplied by ``scale``; the default converts shares to percent. None is a missing number.
    """
    values, low, high = (np.array([number(item[part]) for item in intervals]) * scale for part in range(3))
    return values, np.nan_to_num(np.vstack([values - low, high - values]), nan=0).clip(min=0)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file, with the same bytes on every call."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes. The tables show it correctly.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
