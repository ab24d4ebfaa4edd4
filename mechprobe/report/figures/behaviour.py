"""Figures of the accuracies of clean models and under whole-residual patching, and of the shares of the ceiling."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mechprobe.evals.result import Accuracy, ForcedPrefix
from mechprobe.formatting import number
from mechprobe.localization.result import SiteCeilings
from mechprobe.report.figures import style
from mechprobe.report.figures.told import tell
from mechprobe.types import POOLED


def accuracy_figure(accuracy: dict[str, Accuracy], forced: ForcedPrefix | None = None) -> Figure:
    """Bars of model → task → accuracy with 95 % intervals, grouped by task, and diamonds of the forced-prefix baseline."""
    models, tasks = list(accuracy), list(next(iter(accuracy.values())))
    colors, width = style.model_colors(models), 0.8 / len(models)
    first = np.arange(len(tasks)) - (len(models) - 1) / 2 * width
    with style.house_style():
        figure = style.new_figure(max(6.5, 1.5 * len(tasks) + 1.5), 3.4)
        axes = figure.subplots()
        for index, model in enumerate(models):
            values, errors = style.error_bars([accuracy[model].get(task, style.NOT_MEASURED) for task in tasks])
            x = first + index * width
            bars = axes.bar(x, values, width * 0.92, color=colors[model], label=style.plain(model))
            spans = axes.errorbar(x, values, errors, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2)
            cells = [accuracy[model].get(task, style.NOT_MEASURED) for task in tasks]
            tell(axes, model, [bars, spans], zip(x, values, strict=True), cells, names=tasks)
        if forced:
            _draw_forced(axes, first, forced, tasks)
        axes.set_xticks(np.arange(len(tasks)), style.labels(tasks))
        axes.tick_params(axis="x", length=0)
        style.percent_axis(axes, "accuracy (%)", high=104.0)
        figure.legend(loc="outside upper center", ncols=min(6, len(models) + bool(forced)))
        return figure


def _draw_forced(axes: Axes, x: np.ndarray, forced: ForcedPrefix, tasks: list[str]) -> None:
    values, _ = style.error_bars([forced.accuracy.get(task, style.NOT_MEASURED) for task in tasks])
    drawn = axes.plot(
        x, values, linestyle="none", marker="D", markersize=6.5, markerfacecolor="white", markeredgecolor=style.INK,
        markeredgewidth=1.4, label=style.plain(forced.label), zorder=5,
    )  # fmt: skip
    cells = [forced.accuracy.get(task, style.NOT_MEASURED) for task in tasks]
    tell(axes, forced.label, drawn, zip(x, values, strict=True), cells, names=tasks)


_COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, "#5a5a5a", style.SKY, style.RED)


def ceilings_figure(ceilings: SiteCeilings) -> Figure:
    """Accuracy of both models under whole-residual patching at every site, one panel per task."""
    tasks = ceilings.tasks
    with style.house_style():
        figure = style.new_figure(max(6.5, 2.1 * len(tasks)), 3.3)
        panels = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
        for axes, task, title in zip(panels, tasks, style.labels(tasks, width=24), strict=True):
            _draw_sites(axes, ceilings, task)
            axes.set_title(title)
        style.percent_axis(panels[0], "accuracy (%)", low=-4.0, high=104.0)
        figure.legend(handles=_handles(*ceilings.pair), loc="outside upper center", ncols=4)
        return figure


def _draw_sites(axes: Axes, ceilings: SiteCeilings, task: str) -> None:
    (base, tuned), sites = ceilings.pair, list(ceilings.sites)
    x, chosen = np.arange(len(sites)), sites.index(ceilings.chosen)
    axes.axvspan(chosen - 0.4, chosen + 0.4, color="#f1f1f1", zorder=0)
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
        tell(axes, side, drawn, zip(x + shift, values, strict=True), cells, names=sites)
    axes.set_xticks(x, [site.rsplit(".", 1)[-1] for site in sites])
    axes.set_xlim(-0.6, len(sites) - 0.4)
    axes.set_xlabel(f"site: {sites[0].rsplit('.', 1)[0]}.*")


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
        figure = style.new_figure(max(5.5, 4.4 * len(curves)), 3.3)
        panels = np.atleast_1d(figure.subplots(1, len(curves), sharey=True))
        for axes, (title, tasks) in zip(panels, curves.items(), strict=True):
            _draw_shares(axes, tasks, intervals.get(title, ()))
            axes.set_title(style.title_of(title))
        panels[0].set_ylabel("share of the ceiling (%)")
        # The share of a small ceiling is unbounded; limit the axis to a readable range.
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(low, -100), min(max(high, 115), 200))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=7)
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
        tell(axes, task, line, zip(sizes, shares, strict=True), cells, names=numbers, at=sizes)
    if band:
        low, high = ([100 * number(row[side]) for row in band] for side in (2, 3))
        drawn = axes.fill_between([row[0] for row in band], low, high, color=style.INK, alpha=0.12, linewidth=0)
        tell(axes, POOLED, drawn)
    sizes = sorted({size for points in tasks.values() for size, _ in points})
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.set_xlabel("features edited, best first")
