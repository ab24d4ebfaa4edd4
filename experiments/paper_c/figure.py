"""The figure of an experiment: scores over training with the range of the seeds, and the claims with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.paper_c.design import Experiment
from experiments.paper_c.tables import arm_name, possible, style_name
from experiments.paper_c.training import Run
from experiments.paper_c.verdicts import other_tasks, tasks_of
from mechprobe.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    LIGHT,
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
WARM_UP = "Steps of warm-up are a tenth of all steps, so the learning rate of arms with more steps rises later."
Runs = Mapping[str, Mapping[str, Run]]


def draw(design: Experiment, runs: Runs, result: Mapping[str, Any]) -> bytes:
    """The figure as PNG."""
    with house_style():
        return to_png(_figure(design, runs, result))


def _figure(design: Experiment, runs: Runs, result: Mapping[str, Any]) -> Figure:
    n_claims = sum(len(found) for found in result["claims"].values())
    figure = new_figure(11.0, 5.0 + 0.25 * n_claims)
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.8, 1.2 + 0.25 * n_claims])
    top, bottom = parts
    panels = top.subplots(1, 3)
    _curves(panels[0], runs, lambda run: 100 * _mean(run, "id"), "trained skill (%)")
    _curves(panels[1], runs, lambda run: 100 * _mean(run, "ood"), "mean of the other skills (%)")
    _curves(panels[2], runs, lambda run: run.mean_lengths(other_tasks(run)), "tokens, other skills")
    if len({arm.steps for arm in design.arms.values()}) > 1:
        top.supxlabel(WARM_UP, fontsize=8.5)
    handles, names = panels[0].get_legend_handles_labels()
    top.legend(handles, names, loc="outside upper center", ncols=len(names) if len(names) <= 6 else 4)
    _forest(bottom.subplots(), design, result)
    return figure


def _mean(run: Run, on: str) -> np.ndarray:
    return np.mean([run.scores(task).mean(axis=1) for task in tasks_of(run, on)], axis=0)


def _curves(axes: Axes, runs: Runs, of: Any, title: str) -> None:
    """Mean over seeds against the step; the band is from the lowest to the highest seed."""
    lengths = {name: next(iter(by_seed.values())).steps for name, by_seed in runs.items()}
    ends = {steps[-1] for steps in lengths.values()}
    for place, (name, by_seed) in enumerate(runs.items()):
        color, style, steps = COLORS[place % len(COLORS)], STYLES[place // len(COLORS)], lengths[name]
        rows = np.stack([of(run) for run in by_seed.values()])
        label = f"{arm_name(name)} ({steps[-1]:,} steps)" if len(ends) > 1 else arm_name(name)
        plot_course(axes, steps, rows, style, color=color, marker=MARKS[place % len(MARKS)], label=label)
    step_axis(axes, min(steps[0] for steps in lengths.values()), max(ends))
    axes.set_title(title)


def plot_course(axes: Axes, steps: Sequence[int], rows: np.ndarray, style: str = "-", **looks: Any) -> None:
    """A course over training whose first column is base. No line joins base, which has no place on a log scale."""
    places, means, color = [steps[0] / 2, *steps], rows.mean(axis=0), looks["color"]
    axes.plot(places[1:], means[1:], style, markersize=3.5, **looks)
    axes.plot(places[:1], means[:1], color=color, marker=looks["marker"], markersize=3.5)
    axes.fill_between(places[1:], rows.min(axis=0)[1:], rows.max(axis=0)[1:], color=color, alpha=0.15, linewidth=0)
    axes.plot(places[:1] * 2, [rows.min(axis=0)[0], rows.max(axis=0)[0]], color=color, alpha=0.3)


def step_axis(axes: Axes, first: int, last: int) -> None:
    """A log scale of steps; base has a place of its own at the left."""
    axes.set_xscale("log", base=2)
    axes.axvline(first / 2**0.5, color=LIGHT, linewidth=1)
    powers = [2**n for n in range(1, 30) if first <= 2**n <= last]
    ticks = powers if len(powers) <= 6 else powers[::2]
    axes.set_xticks([first / 2, *ticks], ["base", *map(str, ticks)])
    axes.minorticks_off()
    axes.set_xlabel("step (log scale; base apart)")


def _forest(axes: Axes, design: Experiment, result: Mapping[str, Any]) -> None:
    """Every claim as a point with its interval."""
    place, ticks = 0, []
    for style in design.styles:
        for claim, each in zip(design.claims_of(style), result["claims"][style], strict=True):
            value, low, high = (np.nan if part is None else 100 * part for part in each["value"][:3])
            least, most = possible(claim)
            mark = STATUS_MARK[each["status"]]
            if np.isfinite(low) and claim.kind != "dip":
                low, high = (min(max(end, 100 * least), 100 * most) for end in (low, high))
                axes.plot([low, high], [place, place], color=GREY, linewidth=1.4)
            axes.plot([value], [place], mark, color="#222222", markersize=5)
            axes.plot([100 * each["than"]], [place], "|", color="#D55E00", markersize=10)
            ticks.append(f"{style_name(design, style)}: {claim.text}" if style else claim.text)
            place += 1
    axes.set_yticks(range(place), ticks)
    axes.set_ylim(place - 0.4, -0.6)
    axes.grid(axis="x")
    axes.set_title("circle: supported, square: open, cross: opposed")
    axes.set_xlabel("change in points, or of length in %; bar: the limit of the claim")
