"""A figure of series over one axis: one panel for each quantity, one line for each name."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from numpy import ndarray

from mechprobe.report.figures.style import MARKS, house_style, labels, model_colors, new_figure, title_of
from mechprobe.report.figures.told import tell

_IN_A_ROW, _MARKED_UP_TO = 3, 60


def lines_figure(
    panels: Mapping[str, Mapping[str, Float[ndarray, " point"]]],
    x: Float[ndarray, " point"] | Int[ndarray, " point"],
    *,
    x_label: str,
    unit: str,
) -> Figure:
    """Draw every series, with a mark for each point where there are few.

    Args:
        panels: Title of a panel → name of a line → values.
        x: Their places on the axis.
        x_label: Label of the x axes.
        unit: Label of the y axes; empty where the titles say it.
    """
    columns = min(_IN_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    with house_style():
        figure = new_figure(max(5.5, 3.6 * columns), 2.7 * rows)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, lines) in zip(grid, panels.items(), strict=False):
            colors, names = model_colors(list(lines)), labels(list(lines), width=28, lines=2)
            for place, (name, values) in enumerate(lines.items()):
                mark = MARKS[place % len(MARKS)] if len(x) <= _MARKED_UP_TO else ""
                values = np.asarray(values)
                drawn = axes.plot(x, values, color=colors[name], marker=mark, markersize=4, label=names[place])
                at = [f"{x_label} {one:g}" for one in x]
                cells = [[value] for value in values]
                tell(
                    axes,
                    name,
                    drawn,
                    zip(x, values, strict=True),
                    cells,
                    names=at,
                    at=x,
                    unit=unit,
                    scale=1,
                    hover=bool(mark),
                )
            axes.set_title(title_of(title))
            axes.set_xlabel(x_label)
            axes.set_ylabel(unit)
            if len(lines) > 1:
                axes.legend(loc="best")
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        return figure
