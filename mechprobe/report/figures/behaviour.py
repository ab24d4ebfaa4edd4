"""Figure of the accuracy of every model on every task."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechprobe.evals.result import Accuracy, ForcedPrefix
from mechprobe.report.figures.style import (
    INK,
    NOT_MEASURED,
    error_bars,
    house_style,
    model_colors,
    new_figure,
    percent_axis,
    plain,
)


def accuracy_figure(accuracy: dict[str, Accuracy], forced: ForcedPrefix | None = None) -> Figure:
    """Bars of accuracy with 95 % intervals, grouped by task, and diamonds of the forced-prefix baseline.

    Args:
        accuracy: Model → task → accuracy.
        forced: The baseline, if it was measured.
    """
    models, tasks = list(accuracy), list(next(iter(accuracy.values())))
    colors, width = model_colors(models), 0.8 / len(models)
    first = np.arange(len(tasks)) - (len(models) - 1) / 2 * width
    with house_style():
        figure = new_figure(max(6.5, 1.5 * len(tasks) + 1.5), 3.4)
        axes = figure.subplots()
        for index, model in enumerate(models):
            values, errors = error_bars([accuracy[model].get(task, NOT_MEASURED) for task in tasks])
            x = first + index * width
            axes.bar(x, values, width * 0.92, color=colors[model], label=plain(model))
            axes.errorbar(x, values, errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        if forced:
            _draw_forced(axes, first, forced, tasks)
        axes.set_xticks(np.arange(len(tasks)), [plain(task) for task in tasks])
        axes.tick_params(axis="x", length=0)
        percent_axis(axes, "accuracy (%)", high=104.0)
        figure.legend(loc="outside upper center", ncols=min(6, len(models) + bool(forced)))
        return figure


def _draw_forced(axes: Axes, x: np.ndarray, forced: ForcedPrefix, tasks: list[str]) -> None:
    values, _ = error_bars([forced.accuracy.get(task, NOT_MEASURED) for task in tasks])
    axes.plot(
        x, values, linestyle="none", marker="D", markersize=6.5, markerfacecolor="white", markeredgecolor=INK,
        markeredgewidth=1.4, label=plain(forced.label), zorder=5,
    )  # fmt: skip
