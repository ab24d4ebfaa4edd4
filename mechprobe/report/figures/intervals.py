"""A figure of numbers with intervals: one panel for each group, one row for each number, and its n beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mechprobe.formatting import number
from mechprobe.report.figures.style import BLUE, GREY, INK, error_bars, house_style, labels, new_figure
from mechprobe.report.figures.told import tell

_IN_A_ROW = 3


def intervals_figure(
    groups: Mapping[str, Mapping[str, Sequence[Any]]], *, unit: str, scale: float = 100, marked: Sequence[float] = ()
) -> Figure:
    """Draw every number as a point with its interval.

    Args:
        groups: Title of a panel → label of a row → ``[value, low, high, n]``; None is a missing number, and n may be left out.
        unit: Label of the x axes.
        scale: Factor of the numbers; the default converts shares to percent.
        marked: Positions of vertical lines, in units of the axis, such as 0 for "no change".
    """
    columns = min(_IN_A_ROW, len(groups))
    rows, most = -(-len(groups) // columns), max(map(len, groups.values()))
    with house_style():
        figure = new_figure(max(5.5, 4.2 * columns), rows * (0.26 * most + 1.0))
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, found) in zip(panels, groups.items(), strict=False):
            y, cells = np.arange(len(found)), list(found.values())
            values, errors = error_bars(cells, scale)
            for place in marked:
                axes.axvline(
                    place, color=INK if place == 0 else GREY, linewidth=0.9, linestyle="-" if place == 0 else ":"
                )
            axes.errorbar(values, y, xerr=errors, fmt="o", color=BLUE, markersize=5, capsize=2.5, linewidth=1.3)
            tell(axes, "", (), zip(values, y, strict=True), cells, names=list(found), unit=unit, scale=scale)
            axes.set_yticks(y, labels([_with_n(label, cell) for label, cell in found.items()], width=28, lines=2))
            axes.set_ylim(len(found) - 0.4, -0.6)
            axes.grid(axis="x")
            axes.set_title(labels([title], width=30)[0])
            axes.set_xlabel(unit)
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        return figure


def _with_n(label: str, cell: Sequence[Any]) -> str:
    n = number(cell[3]) if len(cell) > 3 else float("nan")
    return f"{label} (n = {n:,.0f})" if n == n else label
