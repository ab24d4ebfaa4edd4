"""The figure of an experiment: scores over training with the range of the seeds, and the claims with their intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.paper_c.design import Experiment
from experiments.paper_c.training import Run
from experiments.paper_c.verdicts import other_tasks, tasks_of
from mechprobe.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    MARKS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    house_style,
    new_figure,
    to_png,
)

STATUS_MARK = {"supported": "o", "open": "s", "opposed": "X"}
COLORS, STYLES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED), ("-", "--", ":")
Runs = Mapping[str, Mapping[str, Run]]


def draw(design: Experiment, runs: Runs, result: Mapping[str, Any]) -> bytes:
    """The figure as PNG."""
    with house_style():
        return to_png(_figure(design, runs, result))


def _figure(design: Experiment, runs: Runs, result: Mapping[str, Any]) -> Figure:
    n_claims = sum(len(found) for found in result["claims"].values())
    figure = new_figure(11.0, 5.0 + 0.25 * n_claims)
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.8, 1.2 + 0.25 * n_claims])
    panels = top.subplots(1, 3)
    _curves(panels[0], runs, lambda run: 100 * _mean(run, "id"), "trained skill (%)")
    _curves(panels[1], runs, lambda run: 100 * _mean(run, "ood"), "mean of the other skills (%)")
    _curves(panels[2], runs, lambda run: run.mean_lengths(other_tasks(run)), "tokens, other skills")
    handles, names = panels[0].get_legend_handles_labels()
    top.legend(handles, names, loc="outside upper center", ncols=min(6, len(names)))
    _forest(bottom.subplots(), design, result)
    return figure


def _mean(run: Run, on: str) -> np.ndarray:
    return np.mean([run.scores(task).mean(axis=1) for task in tasks_of(run, on)], axis=0)


def _curves(axes: Axes, runs: Runs, of: Any, title: str) -> None:
    """Mean over seeds against the step; the band is from the lowest to the highest seed; base is drawn at the left."""
    for place, (name, by_seed) in enumerate(runs.items()):
        color, style = COLORS[place % len(COLORS)], STYLES[place // len(COLORS)]
        steps = next(iter(by_seed.values())).steps
        rows = np.stack([of(run) for run in by_seed.values()])
        places = [steps[0] / 2, *steps]
        axes.plot(
            places, rows.mean(axis=0), style, color=color, marker=MARKS[place % len(MARKS)], markersize=3.5, label=name
        )
        axes.fill_between(places, rows.min(axis=0), rows.max(axis=0), color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("step (leftmost: base)")
    axes.set_title(title)


def _forest(axes: Axes, design: Experiment, result: Mapping[str, Any]) -> None:
    """Every claim as a point with its interval."""
    place, ticks = 0, []
    for style in design.styles:
        for claim, each in zip(design.claims_of(style), result["claims"][style], strict=True):
            value, low, high = (np.nan if part is None else 100 * part for part in each["value"][:3])
            mark = STATUS_MARK[each["status"]]
            if np.isfinite(low) and claim.kind != "dip":
                axes.plot([low, high], [place, place], color=GREY, linewidth=1.4)
            axes.plot([value], [place], mark, color="#222222", markersize=5)
            axes.plot([100 * each["than"]], [place], "|", color="#D55E00", markersize=10)
            ticks.append(f"{style}: {claim.text}" if style else claim.text)
            place += 1
    axes.set_yticks(range(place), ticks)
    axes.set_ylim(place - 0.4, -0.6)
    axes.grid(axis="x")
    axes.set_title("claims: circle supported, square open, cross opposed; bar: the limit")
    axes.set_xlabel("change in points, or of length in %")
