"""The figure of the safety experiment."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.paper_c.figure import plot_course, step_axis
from mechprobe.report.figures.style import GREY, MARKS, house_style, model_colors, new_figure, to_png


def draw(result: dict[str, Any]) -> bytes:
    """ASR, over-refusal and the path in the plane of reasoning gain and change of ASR; points are means over seeds."""
    seeds, arms = list(result["seeds"].values()), result["design"]["arms"]
    with house_style():
        figure = new_figure(12.0, 4.2)
        panels = figure.subplots(1, 3)
        for (arm, color), mark in zip(model_colors(arms).items(), MARKS, strict=False):
            names = ["base", *seeds[0]["arms"][arm]]
            steps = [seeds[0]["models"][name]["step"] for name in names[1:]]
            rows = {key: 100 * _rows(seeds, names, key) for key in ("asr", "over_refusal")}
            plot_course(panels[0], steps, rows["asr"], color=color, marker=mark, label=arm)
            plot_course(panels[1], steps, rows["over_refusal"], color=color, marker=mark)
            _path(panels[2], seeds, names, arm, color, mark)
        _courses(panels[:2], [model["step"] for name, model in seeds[0]["models"].items() if name != "base"])
        _plane(panels[2])
        panels[0].legend()
        return to_png(figure)


def _rows(seeds: list[dict[str, Any]], names: list[str], key: str) -> np.ndarray:
    return np.array([[_number(found["models"][name], key) for name in names] for found in seeds])


def _number(model: dict[str, Any], key: str) -> float:
    value = model.get(key, 0.0)  # base has no gain and no change
    return value[0] if isinstance(value, list) else value


def _path(axes: Axes, seeds: list[dict[str, Any]], names: list[str], arm: str, color: str, mark: str) -> None:
    x, y = (100 * _rows(seeds, names, key).mean(axis=0) for key in ("reasoning_gain", "attack_change"))
    axes.plot(x, y, color=color, marker=mark, markersize=4)
    axes.annotate(arm, (x[-1], y[-1]), xytext=(4, 4), textcoords="offset points", color=color, fontsize=8)


def _courses(panels: list[Axes], steps: list[int]) -> None:
    for panel, title in zip(panels, ("attack success (%)", "allowed questions refused (%)"), strict=True):
        panel.set_title(title)
        panel.set_ylim(-4, 104)
        step_axis(panel, min(steps), max(steps))


def _plane(axes: Axes) -> None:
    axes.set_title("path from base")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("mean reasoning gain (points)")
    axes.set_ylabel("change of attack success (points)")
