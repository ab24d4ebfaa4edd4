"""The figures of a report. Each takes plain values and returns a matplotlib figure; none sees a model or a file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechprobe.report.figures.style import (
    BLUE,
    GREY,
    INK,
    LIGHT,
    MARKS,
    ORANGE,
    house_style,
    model_colors,
    new_figure,
    percent_axis,
    plain,
)

Interval = Sequence[Any]
"""``[value, low, high, n]``."""

TaskIntervals = Mapping[str, Interval]

_NOTHING: Interval = (None, None, None)
"""Stands for a task that was not measured."""


def _errors(intervals: Sequence[Interval], scale: float = 100) -> tuple[np.ndarray, np.ndarray]:
    """Values and the lengths of their error bars, in percent."""
    values = np.array([_number(item[0]) for item in intervals]) * scale
    low = np.array([_number(item[1]) for item in intervals]) * scale
    high = np.array([_number(item[2]) for item in intervals]) * scale
    return values, np.nan_to_num(np.vstack([values - low, high - values]), nan=0).clip(min=0)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def accuracy_figure(
    accuracy: Mapping[str, TaskIntervals], *, forced: TaskIntervals | None = None, forced_label: str = ""
) -> Figure:
    """Accuracy of every model on every task with 95 % intervals, and the forced-prefix baseline where there is one."""
    models = list(accuracy)
    tasks = list(next(iter(accuracy.values())))
    colors = model_colors(models)
    width = 0.8 / len(models)
    with house_style():
        figure = new_figure(max(6.5, 1.5 * len(tasks) + 1.5), 3.4)
        axes = figure.subplots()
        for index, model in enumerate(models):
            values, errors = _errors([accuracy[model].get(task, _NOTHING) for task in tasks])
            place = np.arange(len(tasks)) + (index - (len(models) - 1) / 2) * width
            axes.bar(place, values, width * 0.92, color=colors[model], label=plain(model))
            axes.errorbar(place, values, errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        if forced:
            place = np.arange(len(tasks)) + (0 - (len(models) - 1) / 2) * width
            values, _ = _errors([forced.get(task, _NOTHING) for task in tasks])
            axes.plot(
                place,
                values,
                linestyle="none",
                marker="D",
                markersize=6.5,
                markerfacecolor="white",
                markeredgecolor=INK,
                markeredgewidth=1.4,
                label=plain(forced_label),
                zorder=5,
            )
        axes.set_xticks(np.arange(len(tasks)), [plain(task) for task in tasks])
        axes.tick_params(axis="x", length=0)
        percent_axis(axes, "accuracy (%)", high=104.0)
        figure.legend(loc="outside upper center", ncols=min(6, len(models) + bool(forced)))
        return figure


def ceilings_figure(ceilings: Mapping[str, Any]) -> Figure:
    """Per task and site: what base reaches with the tuned model's residual, and what that keeps with base's."""
    base, tuned = ceilings["pair"]
    tasks, sites = list(ceilings["tasks"]), list(ceilings["sites"])
    x = np.arange(len(sites))
    with house_style():
        figure = new_figure(max(6.5, 2.1 * len(tasks)), 3.3)
        panels = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
        for axes, task in zip(panels, tasks, strict=True):
            chosen = ceilings.get("chosen")
            if chosen in sites:
                axes.axvspan(sites.index(chosen) - 0.4, sites.index(chosen) + 0.4, color="#f1f1f1", zorder=0)
            for name, style in ((tuned, "-"), (base, ":")):
                level = 100 * _number(ceilings["clean"][name][task][0])
                axes.axhline(level, color=GREY, linestyle=style, linewidth=1.2)
            for key, color, mark, shift in (("sufficiency", BLUE, "^", -0.1), ("necessity", ORANGE, "v", 0.1)):
                values, errors = _errors([ceilings["sites"][site][key][task] for site in sites])
                axes.errorbar(
                    x + shift, values, errors, color=color, marker=mark, markersize=6, capsize=2, linewidth=1.2
                )
            axes.set_title(plain(task))
            axes.set_xticks(x, [site.rsplit(".", 1)[-1] for site in sites])
            axes.set_xlim(-0.6, len(sites) - 0.4)
            axes.set_xlabel(f"site: {sites[0].rsplit('.', 1)[0]}.*")
        percent_axis(panels[0], "accuracy (%)", low=-4.0, high=104.0)
        figure.legend(handles=_ceiling_handles(base, tuned), loc="outside upper center", ncols=4)
        return figure


def _ceiling_handles(base: str, tuned: str) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=BLUE, marker="^", label=plain(f"{base} with {tuned}'s residual (sufficiency)")),
        Line2D([], [], color=ORANGE, marker="v", label=plain(f"{tuned} with {base}'s residual (necessity)")),
        Line2D([], [], color=GREY, label=plain(f"{tuned} untouched")),
        Line2D([], [], color=GREY, linestyle=":", label=plain(f"{base} untouched")),
    ]


def shares_figure(summary: Mapping[str, Any]) -> Figure:
    """Histograms over live latents: MAS of every model, NRN of every tuned one; counts on a logarithmic axis."""
    models, base = list(summary["models"]), summary["base"]
    colors = model_colors(models)
    tuned = [name for name in models if name != base]
    with house_style():
        figure = new_figure(9.0, 3.3)
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, prefix, names, equal, title in (
            (left, "mas", models, 1 / len(models), "MAS: a model's share of the decoder norm"),
            (right, "nrn", tuned, 0.5, plain(f"NRN: tuned model against {base}")),
        ):
            for name in names:
                histogram = summary["histograms"][f"{prefix}_{name}"]
                edges, counts = np.array(histogram["edges"]), np.array(histogram["counts"], dtype=float)
                axes.stairs(counts, edges, color=colors[name], linewidth=1.8, label=plain(name))
            axes.axvline(equal, color=INK, linestyle=":", linewidth=1)
            axes.annotate(
                "equal",
                (equal, 0.98),
                xycoords=("data", "axes fraction"),
                xytext=(4, 0),
                fontsize=8.5,
                textcoords="offset points",
                va="top",
            )
            axes.set_title(title)
            axes.set_xlim(0, 1)
            axes.set_yscale("symlog", linthresh=1, linscale=0.4)
        largest = max(max(histogram["counts"]) for histogram in summary["histograms"].values())
        ticks = [0, *(10**power for power in range(7) if 10**power <= max(1, largest))]
        left.set_ylim(0, 1.6 * max(1, largest))
        left.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        left.set_ylabel(f"latents (of {summary['n_alive']:,} live)")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(models))
        return figure


def training_figure(lines: Sequence[Mapping[str, Any]], *, gate: float | None = None) -> Figure:
    """Fraction of variance explained per model, and loss, over training tokens."""
    tokens = np.array([line["tokens"] for line in lines], dtype=float)
    unit, label = (1e6, "million tokens") if tokens.max() >= 2e6 else (1e3, "thousand tokens")
    models = list(lines[0].get("fve", {}))
    colors = model_colors(models)
    with house_style():
        figure = new_figure(9.0, 3.1)
        left, middle, right = figure.subplots(1, 3)
        for name, mark in zip(models, MARKS, strict=False):
            values = [_number(line["fve"][name]) for line in lines]
            left.plot(tokens / unit, values, color=colors[name], label=plain(name), linewidth=1.6)
            left.plot(tokens[-1:] / unit, values[-1:], color=colors[name], marker=mark, markersize=6)
        if gate is not None:
            left.axhline(gate, color=INK, linestyle=":", linewidth=1)
            place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
            left.annotate("gate", (0.99, gate), fontsize=8.5, **place)
        left.set_ylim(min(1.0, max(0.0, _low(lines, models))), 1.0)
        left.set_title("variance explained (batch)")
        left.legend(loc="lower right")
        middle.plot(tokens / unit, [_number(line.get("loss")) for line in lines], color=INK, linewidth=1.6)
        middle.set_yscale("log")
        middle.set_title("training loss")
        right.plot(tokens / unit, [100 * _number(line.get("dead_frac")) for line in lines], color=INK, linewidth=1.6)
        right.set_ylim(0, 100)
        right.set_title("dead latents (%)")
        for axes in (left, middle, right):
            axes.set_xlabel(label)
            axes.set_xlim(0, None)
        return figure


def _low(lines: Sequence[Mapping[str, Any]], models: Sequence[str]) -> float:
    """Lower end of the FVE axis: what is left out is the first steep rise only."""
    later = lines[len(lines) // 10 :]
    values = [_number(line["fve"][name]) for line in later for name in models]
    finite = [value for value in values if np.isfinite(value)]
    return 0.05 * np.floor((min(finite) - 0.02) / 0.05) if finite else 0.0


def share_figure(
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, Any]]]],
    intervals: Mapping[str, Sequence[Sequence[Any]]] | None = None,
) -> Figure:
    """Share of the ceiling against the number of features edited: one panel per edit, one line per task.

    Args:
        curves: Title → task → ``(number of features, share)``, rising.
        intervals: Title → ``[number of features, share, low, high]`` of the pooled row, drawn as a band.
    """
    with house_style():
        figure = new_figure(max(5.5, 4.4 * len(curves)), 3.3)
        panels = np.atleast_1d(figure.subplots(1, len(curves), sharey=True))
        colors = [BLUE, ORANGE, "#009E73", "#CC79A7", "#5a5a5a", "#56B4E9", "#D55E00"]
        for axes, (title, tasks) in zip(panels, curves.items(), strict=True):
            axes.axhspan(98, 102, color=LIGHT, zorder=0)
            axes.axhline(0, color=INK, linewidth=0.8)
            for index, (task, points) in enumerate(tasks.items()):
                sizes = [size for size, _ in points]
                values = [100 * _number(value) for _, value in points]
                style = {"color": colors[index % len(colors)], "marker": MARKS[index % len(MARKS)], "linewidth": 1.4}
                if task == "pooled":
                    style |= {"color": INK, "linewidth": 2.4, "zorder": 5}
                axes.plot(sizes, values, markersize=5, label=plain(task), **style)
            band = (intervals or {}).get(title)
            if band:
                low, high = ([100 * _number(row[side]) for row in band] for side in (2, 3))
                axes.fill_between([row[0] for row in band], low, high, color=INK, alpha=0.12, linewidth=0)
            axes.set_xscale("symlog", linthresh=1)
            every = sorted({size for points in tasks.values() for size, _ in points})
            axes.set_xticks(every, [str(size) for size in every], minor=False)
            axes.set_title(plain(title))
            axes.set_xlabel("features edited, best first")
        panels[0].set_ylabel("share of the ceiling (%)")
        _bound_shares(panels[0])
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=7)
        return figure


def _bound_shares(axes: Axes) -> None:
    """Shares of a tiny ceiling can be anything; keep the axis where it can be read."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -100), min(max(high, 115), 200))
