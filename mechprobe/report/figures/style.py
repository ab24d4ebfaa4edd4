"""Colors, marks and sizes that all figures share: readable in grey and by color-blind readers (Okabe-Ito)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    """A color for each model, the same in every figure."""
    others = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _CYCLE[others.index(name) % len(_CYCLE)] for name in names}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib settings of the report."""
    with mpl.rc_context(_RC):
        yield


def plain(text: str) -> str:
    """A name of the user's as matplotlib shows it, never read as a formula."""
    return text.replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """A figure that is not registered with pyplot, so that nothing stays in memory."""
    return Figure(figsize=(width, height), layout="constrained")


def percent_axis(axes: Axes, label: str, *, low: float | None = 0.0, high: float | None = 100.0) -> None:
    """Name a y axis in percent and bound it."""
    axes.set_ylabel(label)
    axes.set_ylim(low, high)
