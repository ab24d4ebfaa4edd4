"""The figures of ``run.py``: profiles, drift, divergence, weights, and drift against both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechprobe.drift.probe.behaviour_result import Behaviour
from mechprobe.drift.probe.result import ProbeResult
from mechprobe.files import write_bytes
from mechprobe.report.figures.style import GREY, MARKS, house_style, model_colors, new_figure, percent_axis, to_png


def draw_all(probe: ProbeResult, levels: ProbeResult | None, tables: Mapping[str, Any], out: Path) -> list[str]:
    """Write every figure and return their names."""
    behaviour = probe.behaviour["right"]
    with house_style():
        pictures = {"profiles.png": profiles(behaviour), "drift.png": drift(behaviour)}
        if levels is not None:
            pictures["profiles_levels.png"] = profiles(levels.behaviour["right"])
        pictures["divergence.png"] = divergence(tables["divergence"])
        pictures["weights.png"] = weights(behaviour, tables["weights"]["updates"])
        if probe.numbers:
            pictures["correlation.png"] = scatter(probe)
    for name, figure in pictures.items():
        write_bytes(out / name, to_png(figure))
    return list(pictures)


def profiles(found: Behaviour) -> Figure:
    """The score on every skill over the training of each arm, with 95 % intervals; base is the grey band."""
    base, colors = next(iter(found.profiles)), model_colors(list(found.arms))
    figure = new_figure(2.6 * len(found.skills), 3.0)
    panels = np.atleast_1d(figure.subplots(1, len(found.skills), sharey=True))
    for axes, skill in zip(panels, found.skills, strict=True):
        score = found.profiles[base][skill].corrected
        axes.axhspan(100 * score.low, 100 * score.high, color=GREY, alpha=0.25, linewidth=0)
        for (arm, course), mark in zip(found.arms.items(), MARKS, strict=False):
            scores = [score, *(found.profiles[point.model][skill].corrected for point in course.points)]
            places = [0.0, *(100 * point.progress for point in course.points)]
            _bars(axes, places, scores, 100, color=colors[arm], marker=mark, label=arm)
        axes.set_title(skill)
        axes.set_xlabel("training done (%)")
    percent_axis(panels[0], "score, chance-corrected (%)", low=None, high=None)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(found.arms))
    return figure


def drift(found: Behaviour) -> Figure:
    """Drift (L1), what of it is lost, imbalance and jaggedness; crosses are what noise alone stays below."""
    names = {
        "drift_l1": "drift from base (L1)",
        "lost": "lost",
        "imbalance": "imbalance of gains",
        "jaggedness": "jaggedness",
    }
    colors, figure = model_colors(list(found.arms)), new_figure(11, 3.0)
    for axes, (name, title) in zip(figure.subplots(1, 4), names.items(), strict=True):
        for (arm, course), mark in zip(found.arms.items(), MARKS, strict=False):
            numbers, places = (
                [getattr(point, name) for point in course.points],
                [100 * p.progress for p in course.points],
            )
            _bars(axes, places, numbers, 1, color=colors[arm], marker=mark, label=arm)
            axes.plot(places, [number.null for number in numbers], "x", color=colors[arm], markersize=4)
        axes.set_title(title)
        axes.set_xlabel("training done (%)")
        axes.set_ylim(0, None)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(found.arms))
    return figure


def divergence(table: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> Figure:
    """KL(tuned ‖ base) by skill at the end of every arm, one panel per source of text."""
    names = list(dict.fromkeys(model for groups in table.values() for models in groups.values() for model in models))
    colors, figure = model_colors(names), new_figure(4.2 * len(table), 3.2)
    for axes, (source, groups) in zip(np.atleast_1d(figure.subplots(1, len(table))), table.items(), strict=True):
        for number, name in enumerate(names):
            found = [(place, models[name]) for place, models in enumerate(groups.values()) if name in models]
            shift = 0.15 * (number - (len(names) - 1) / 2)
            if found:
                _bars(
                    axes,
                    [place + shift for place, _ in found],
                    [v for _, v in found],
                    1,
                    color=colors[name],
                    marker="o",
                    label=name,
                    linestyle="",
                )
        axes.set_yscale("log")
        axes.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right")
        axes.set_title(f"KL(tuned ‖ base), {source} text")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(names))
    return figure


def weights(found: Behaviour, updates: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Norm, stable rank and change of singular values of the update over training; crosses are random updates of equal norm."""
    names = {
        "relative_norm": "‖ΔW‖ / ‖W‖",
        "stable_rank": "stable rank of ΔW",
        "sv_change": "change of singular values",
    }
    colors, figure = model_colors(list(found.arms)), new_figure(9, 3.0)
    for axes, (name, title) in zip(figure.subplots(1, 3), names.items(), strict=True):
        for (arm, course), mark in zip(found.arms.items(), MARKS, strict=False):
            points = [point for point in course.points if name in updates.get(point.model, {})]
            values, places = (
                [updates[point.model][name] for point in points],
                [100 * point.progress for point in points],
            )
            axes.plot(
                places, [v[0] if isinstance(v, list) else v for v in values], color=colors[arm], marker=mark, label=arm
            )
            axes.plot(
                places, [v[1] if isinstance(v, list) else np.nan for v in values], "x", color=colors[arm], markersize=4
            )
        axes.set_title(title)
        axes.set_xlabel("training done (%)")
        axes.set_ylim(0, None)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(found.arms))
    return figure


def scatter(probe: ProbeResult) -> Figure:
    """Drift of every checkpoint against each number; a line joins the checkpoints of an arm in order of training."""
    numbers = {name: values for name, values in probe.numbers.items() if len(values) > 3}
    arms = probe.behaviour["right"].arms
    colors, columns = model_colors(list(arms)), 4
    rows = -(-len(numbers) // columns)
    figure = new_figure(11, 2.7 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, values) in zip(panels, numbers.items(), strict=False):
        for (arm, course), mark in zip(arms.items(), MARKS, strict=False):
            points = [point for point in course.points if point.model in values]
            x = [values[point.model] for point in points]
            axes.plot(x, [p.drift_l1.value for p in points], color=colors[arm], marker=mark, linewidth=0.8, label=arm)
        axes.set_xlabel(name)
        axes.set_ylabel("drift (L1)")
    for axes in panels[len(numbers) :]:
        axes.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(arms))
    return figure


def _bars(axes: Axes, places: list[float], items: list[Any], scale: float, **style: Any) -> None:
    """Values with their intervals."""
    values, low, high = (scale * np.array([item[part] for item in items], dtype=float) for part in range(3))
    axes.errorbar(
        places, values, yerr=np.vstack([values - low, high - values]).clip(min=0), capsize=2, markersize=4, **style
    )
