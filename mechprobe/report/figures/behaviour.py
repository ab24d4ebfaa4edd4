"""Figures of the accuracies of clean models and under whole-residual patching, and of the shares of the ceiling."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mechprobe.evals.result import Accuracy, ForcedPrefix
from mechprobe.formatting import number
from mechprobe.localization.result import SiteCeilings
from mechprobe.report.figures import style
from mechprobe.report.figures.told import tell
from mechprobe.types import POOLED

_UPRIGHT = 6
"""Tasks up to which bars stand; with more tasks they lie, so that every name can be read."""


def accuracy_figure(accuracy: dict[str, Accuracy], forced: ForcedPrefix | None = None) -> Figure:
    """Bars of model → task → accuracy with 95 % intervals, grouped by task, and diamonds of the forced-prefix baseline."""
    models, tasks = list(accuracy), list(next(iter(accuracy.values())))
    colors, width, lying = style.model_colors(models), 0.8 / len(models), len(tasks) > _UPRIGHT
    with style.house_style():
        size = (
            (7.5, len(tasks) * max(0.34, 0.13 * len(models)) + 1.0)
            if lying
            else (max(6.5, 1.5 * len(tasks) + 1.5), 3.4)
        )
        figure = style.new_figure(*size)
        axes = figure.subplots()
        for place, task in enumerate(tasks):
            first = place - (len(models) - 1) / 2 * width
            for index, model in enumerate(models):
                at, cell = first + index * width, accuracy[model].get(task, style.NOT_MEASURED)
                drawn = _draw_bar(axes, at, cell, width=0.92 * width, color=colors[model], lying=lying)
                tell(axes, {"model": model, "task": task}, drawn, [_turned(at, 100 * number(cell[0]), lying)], [cell])
            if forced:
                _draw_forced(axes, first, forced, task, lying=lying)
        if not any(np.isfinite(number(cell[0])) for found in accuracy.values() for cell in found.values()):
            style.say_nothing_drawn(axes)
        _name_tasks(axes, tasks, lying=lying)
        handles: list[Any] = [Patch(color=colors[model]) for model in models]
        names = [*map(style.plain, models), *([style.plain(forced.label)] if forced else [])]
        style.legend(figure, [*handles, *([Line2D([], [], **_FORCED)] if forced else [])], names)
        return figure


_FORCED: Any = {
    "linestyle": "none", "marker": "D", "markersize": 6.5, "markerfacecolor": style.PAPER, "markeredgecolor": style.INK, "markeredgewidth": 1.4,
}  # fmt: skip


def _turned(at: float | int, value: float | int, lying: bool) -> tuple[float | int, float | int]:
    return (value, at) if lying else (at, value)


def _draw_bar(axes: Axes, at: float | int, cell: Sequence[Any], *, width: float, color: str, lying: bool) -> list[Any]:
    values, errors = style.error_bars([cell])
    look: Any = {"fmt": "none", "ecolor": style.INK, "elinewidth": 1, "capsize": 2}
    if lying:
        return [axes.barh(at, values, width, color=color), axes.errorbar(values, [at], xerr=errors, **look)]
    return [axes.bar(at, values, width, color=color), axes.errorbar([at], values, errors, **look)]


def _draw_forced(axes: Axes, at: float | int, forced: ForcedPrefix, task: str, *, lying: bool) -> None:
    cell = forced.accuracy.get(task, style.NOT_MEASURED)
    place = _turned(at, 100 * number(cell[0]), lying)
    drawn = axes.plot(*([part] for part in place), zorder=5, **_FORCED)
    tell(axes, {"model": forced.label, "task": task}, drawn, [place], [cell])


def _name_tasks(axes: Axes, tasks: Sequence[str], *, lying: bool) -> None:
    if not lying:
        axes.set_xticks(np.arange(len(tasks)), style.labels(tasks))
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, len(tasks) - 0.4)
        style.percent_axis(axes, "accuracy (%)", high=104.0)
        return
    axes.set_yticks(np.arange(len(tasks)), style.labels(tasks, width=34, lines=1))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.set_xlim(0, 104)
    axes.set_xlabel("accuracy (%)")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")


_COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.BASE, style.SKY, style.RED)


def ceilings_figure(ceilings: SiteCeilings) -> Figure:
    """Accuracy of both models under whole-residual patching at every site, one panel per task."""
    tasks = ceilings.tasks
    with style.house_style():
        columns = min(len(tasks), 5 if len(tasks) <= 5 else 4)
        rows = -(-len(tasks) // columns)
        figure = style.new_figure(max(6.5, 2.0 * columns), 2.4 * rows + 0.8)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for place, (axes, task, title) in enumerate(zip(panels, tasks, style.labels(tasks, width=22), strict=False)):
            _draw_sites(axes, ceilings, task)
            axes.set_title(title)
            if place % columns == 0:
                style.percent_axis(axes, "accuracy (%)", low=-4.0, high=104.0)
            if place + columns >= len(tasks):
                axes.set_xlabel(f"site: {next(iter(ceilings.sites)).rsplit('.', 1)[0]}.*")
                axes.tick_params(labelbottom=True)
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        handles = _handles(*ceilings.pair)
        style.legend(figure, handles, [str(handle.get_label()) for handle in handles])
        return figure


def _draw_sites(axes: Axes, ceilings: SiteCeilings, task: str) -> None:
    (base, tuned), sites = ceilings.pair, list(ceilings.sites)
    x, chosen = np.arange(len(sites)), sites.index(ceilings.chosen)
    axes.axvspan(chosen - 0.4, chosen + 0.4, color=style.SHADE, zorder=0)
    for name, line in ((tuned, "-"), (base, ":")):
        clean = ceilings.clean[name][task]
        axes.axhline(100 * clean.value, color=style.GREY, linestyle=line, linewidth=1.2)
        tell(axes, "", (), [(-0.55, 100 * clean.value)], [list(clean)], names=[f"{name}, clean"])
    for side, color, mark, shift in (("sufficiency", style.BLUE, "^", -0.1), ("necessity", style.ORANGE, "v", 0.1)):
        cells = [getattr(found, side)[task] for found in ceilings.sites.values()]
        values, errors = style.error_bars(cells)
        drawn = axes.errorbar(
            x + shift, values, errors, color=color, marker=mark, markersize=6, capsize=2, linewidth=1.2
        )
        tell(axes, side, drawn, zip(x + shift, values, strict=True), cells, names=sites, main={ceilings.chosen})
    axes.set_xticks(x, [site.rsplit(".", 1)[-1] for site in sites])
    axes.set_xlim(-0.6, len(sites) - 0.4)


def _handles(base: str, tuned: str) -> list[Line2D]:
    kinds: Sequence[tuple[str, Any, Any, str]] = (
        (style.BLUE, "^", "-", f"{base} with {tuned}'s residual (sufficiency)"),
        (style.ORANGE, "v", "-", f"{tuned} with {base}'s residual (necessity)"),
        (style.GREY, "", "-", f"{tuned}, clean"),
        (style.GREY, "", ":", f"{base}, clean"),
    )
    return [Line2D([], [], color=c, marker=m, linestyle=line, label=style.plain(text)) for c, m, line, text in kinds]


def share_figure(
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, Any]]]], intervals: Mapping[str, Sequence[Sequence[Any]]]
) -> Figure:
    """Share of the ceiling against the number of edited features: one panel per edit, one line per task.

    Args:
        curves: Edit → task → ``(number of features, share)``, ascending.
        intervals: Edit → ``[number of features, share, low, high]`` of the pooled row, drawn as a band.
    """
    with style.house_style():
        figure = style.new_figure(max(6.5, 4.4 * len(curves)), 3.3)
        panels = np.atleast_1d(figure.subplots(1, len(curves), sharey=True))
        for axes, (title, tasks) in zip(panels, curves.items(), strict=True):
            _draw_shares(axes, tasks, intervals.get(title, ()))
            axes.set_title(style.title_of(title))
        panels[0].set_ylabel("share of the ceiling (%)")
        # The share of a small ceiling is unbounded; limit the axis to a readable range.
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(low, -100), min(max(high, 115), 200))
        style.legend(figure, *panels[0].get_legend_handles_labels())
        return figure


def _draw_shares(axes: Axes, tasks: Mapping[str, Sequence[tuple[int, Any]]], band: Sequence[Sequence[Any]]) -> None:
    axes.axhspan(98, 102, color=style.LIGHT, zorder=0)
    axes.axhline(0, color=style.INK, linewidth=0.8)
    names = style.labels(list(tasks), width=28, lines=2)
    for index, (task, points) in enumerate(tasks.items()):
        sizes, shares = zip(*((size, 100 * number(share)) for size, share in points), strict=True)
        color, width, layer = (style.INK, 2.4, 5) if task == POOLED else (_COLORS[index % len(_COLORS)], 1.4, 2)
        (line,) = axes.plot(sizes, shares, color=color, linewidth=width, zorder=layer, label=names[index])
        line.set(marker=style.MARKS[index % len(style.MARKS)], markersize=5)
        spans = {row[0]: row[2:4] for row in band} if task == POOLED else {}
        cells = [[share, *spans.get(size, (None, None))] for size, share in points]
        numbers = [f"{size:,} features" for size in sizes]
        tell(axes, task, line, zip(sizes, shares, strict=True), cells, names=numbers, at=sizes, main=task == POOLED)
    if band:
        low, high = ([100 * number(row[side]) for row in band] for side in (2, 3))
        drawn = axes.fill_between([row[0] for row in band], low, high, color=style.INK, alpha=0.12, linewidth=0)
        tell(axes, POOLED, drawn)
    sizes = sorted({size for points in tasks.values() for size, _ in points})
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.set_xlabel("features edited, best first")
