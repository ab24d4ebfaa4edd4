"""The intervention figure: every edit of the selected set with its controls, its ceiling and its baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mechprobe.formatting import number
from mechprobe.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    error_bars,
    house_style,
    new_figure,
    plain,
)
from mechprobe.types import POOLED

_OTHERS = {
    "compare": ("^", SKY, 0.21, "features by the other ranking"),
    "vector": ("v", RED, 0.26, "mean difference as one vector, every token"),
    "vector_last": ("<", RED, 0.32, "the same, last prompt token alone"),
    "recon": ("x", GREEN, 0.37, "reconstruction only"),
    "shuffled": ("P", PURPLE, 0.44, "equal norm, other directions (mean)"),
}
"""Set kind → mark, color, shift on the axis, label."""


def effects_figure(
    panels: Sequence[Mapping[str, Any]], tasks: Sequence[str], *, unit: str = "accuracy change (points)"
) -> Figure:
    """Change of accuracy per task, one panel per edit.

    Args:
        panels: Each has ``title``, ``selected`` (task → interval), ``random`` (task → values) and, where measured,
            ``ceiling``, ``baseline`` (task → value), ``baseline_label``, and ``others`` (set kind → task → value).
        tasks: Order of the tasks on the axis.
        unit: Label of the y axis.
    """
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with house_style():
        figure = new_figure(5.1 * n_columns if n_columns > 1 else 6.5, 2.9 * n_rows + 0.9)
        grid = figure.subplots(n_rows, n_columns, sharey="row", squeeze=False).ravel()
        seen: dict[str, Line2D] = {}
        for axes, panel in zip(grid, panels, strict=False):
            _panel(axes, panel, tasks, seen)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for index in range(0, len(panels), n_columns):
            grid[index].set_ylabel(unit)
        figure.legend(handles=list(seen.values()), loc="outside lower center", ncols=min(3, len(seen)))
        return figure


def _panel(axes: Axes, panel: Mapping[str, Any], tasks: Sequence[str], seen: dict[str, Line2D]) -> None:
    axes.axhline(0, color=INK, linewidth=0.9)
    x = np.arange(len(tasks))
    _ceiling(axes, panel, tasks, seen)
    rng = np.random.default_rng(0)
    for place, task in enumerate(tasks):
        draws = 100 * np.array([number(value) for value in panel.get("random", {}).get(task, [])])
        if len(draws):
            jitter = rng.uniform(-0.1, 0.1, len(draws))
            axes.plot(place - 0.27 + jitter, draws, linestyle="none", marker="o", markersize=4, color=GREY, alpha=0.55)
            seen["random"] = _handle("o", GREY, f"random sets, matched ({len(draws)} draws)", alpha=0.55)
    selected = panel["selected"]
    values, errors = error_bars([selected.get(task, [None, None, None]) for task in tasks])
    axes.errorbar(x + 0.09, values, errors, fmt="D", color=BLUE, markersize=6.5, capsize=3, linewidth=1.5, zorder=6)
    seen["selected"] = _handle("D", BLUE, "selected features (95 % interval)")
    for kind, by_task in panel.get("others", {}).items():
        if kind in _OTHERS:
            mark, color, shift, label = _OTHERS[kind]
            points = [100 * number(by_task.get(task)) for task in tasks]
            axes.plot(x + shift, points, linestyle="none", marker=mark, markersize=5, color=color, zorder=4)
            label = panel.get("labels", {}).get(kind, label)
            seen[kind] = _handle(mark, color, plain(label))
    if panel.get("baseline"):
        points = [100 * number(panel["baseline"].get(task)) for task in tasks]
        hollow = {"markerfacecolor": "none", "markeredgecolor": ORANGE, "markeredgewidth": 1.6}
        axes.plot(x - 0.06, points, linestyle="none", marker="s", markersize=7, zorder=5, **hollow)
        seen["baseline"] = _handle("s", ORANGE, plain(panel.get("baseline_label", "baseline")), markerfacecolor="none")
    axes.set_title(plain(panel["title"]))
    axes.set_xticks(x, [plain(task.replace("_", "\n")) for task in tasks], fontsize=8.5)
    if tasks[-1] == POOLED and len(tasks) > 1:
        axes.axvline(len(tasks) - 1.5, color=GREY, linestyle=":", linewidth=1)
    axes.set_xlim(-0.6, len(tasks) - 0.4)
    axes.tick_params(axis="x", length=0)


def _ceiling(axes: Axes, panel: Mapping[str, Any], tasks: Sequence[str], seen: dict[str, Line2D]) -> None:
    if not panel.get("ceiling"):
        return
    for place, task in enumerate(tasks):
        value = 100 * number(panel["ceiling"].get(task))
        axes.plot([place - 0.38, place + 0.47], [value, value], color=INK, linewidth=2.2, solid_capstyle="butt")
    seen["ceiling"] = Line2D([], [], color=INK, linewidth=2.2, label="ceiling: whole residual")


def _handle(mark: str, color: str, label: str, **options: Any) -> Line2D:
    return Line2D([], [], linestyle="none", marker=mark, color=color, markeredgewidth=1.4, label=label, **options)
