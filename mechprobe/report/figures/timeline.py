"""The figures of the timeline page: all quantities over steps, and where half of each change is reached."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechprobe.dynamics.order import HalfChange
from mechprobe.report.figures.style import (
    INK,
    MARKS,
    SHADE,
    error_bars,
    house_style,
    labels,
    legend,
    model_colors,
    new_figure,
    plain,
    step_scale,
    title_of,
)
from mechprobe.report.figures.told import tell
from mechprobe.report.sections.timeline import PANELS
from mechprobe.report.timeline.result import Series, Timeline

SINGLE = "single tasks and benchmarks"
"""Series of the thin lines."""
_LINES = ("-", "--", "-.")
_NAME_POINTS = 9.5
"""Points from the name of a line to the next one."""


def draw_timeline(found: Timeline) -> dict[str, Any]:
    """Both figures by name; none without an arm whose steps are known."""
    if not found.arms:
        return {}
    figures: dict[str, Any] = {"timeline": timeline_figure(found)}
    if any(not half.untold for arm in found.arms.values() for half in arm.panels.halves):
        figures["order"] = order_figure(found)
    return figures


def timeline_figure(found: Timeline) -> Figure:
    """One panel per kind of quantity on a shared axis, one color per arm."""
    panels = [panel for panel in PANELS if any(_of(found, arm, panel) for arm in found.arms)]
    colors = model_colors(list(found.arms))
    with house_style():
        figure = new_figure(9.5, 1.75 * len(panels) + 1.0)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, place in zip(panels, axes, strict=True):
            for number, arm in enumerate(found.arms):
                _draw(place, found, arm, panel, colors[arm], MARKS[number % len(MARKS)])
            _name(place, [series for arm in found.arms for series in _of(found, arm, panel)], panel)
            for arm in found.arms:
                _name_lines(place, _of(found, arm, panel), colors[arm])
        _axis(axes[-1], found)
        for number, arm in enumerate(found.arms):
            axes[0].plot([], [], color=colors[arm], marker=MARKS[number % len(MARKS)], linewidth=2, label=plain(arm))
        legend(figure, *axes[0].get_legend_handles_labels())
        return figure


def _of(found: Timeline, arm: str, panel: str) -> list[Series]:
    return [series for series in found.arms[arm].series if series.panel == panel]


def _draw(axes: Axes, found: Timeline, arm: str, panel: str, color: str, mark: str) -> None:
    shown = _of(found, arm, panel)
    halves = {half.name: half for half in found.arms[arm].panels.halves}
    number = list(found.arms).index(arm)
    strongest = [series.name for series in shown if series.headline]
    for series in shown:
        factor = 100.0 if series.unit == "percent" else 1.0
        values, errors = error_bars(series.values, scale=factor)
        strong = series.headline or len(shown) == 1
        drawn: list[Any] = axes.plot(
            series.at, values, color=color, marker=mark if strong else None, markersize=4.5, linewidth=1.9 if strong else 0.8,
            alpha=1.0 if strong else 0.45, zorder=3 if strong else 2, linestyle=":" if found.arms[arm].lacking(series) else _line(strongest, series.name),
        )  # fmt: skip
        if strong:
            band = values - errors[0], values + errors[1]
            drawn.append(axes.fill_between(series.at, *band, color=color, alpha=0.18, linewidth=0))
        unit = "%" if series.unit == "percent" else "" if series.unit == "plain" else series.unit
        names = [f"{series.name}, {found.axis} {place:,.0f}" for place in series.at]
        kinds = {"arm": arm} | ({} if strong else {"shown": SINGLE})
        tell(
            axes,
            kinds,
            drawn,
            zip(series.at, values, strict=True),
            series.values,
            names=names,
            at=series.at,
            unit=unit,
            scale=factor,
            main={names[-1]} if strong and names else (),
        )
        half = halves.get(series.name)
        if half is not None and not half.untold:
            _mark_half(axes, arm, half, color, 0.06 + 0.055 * number)


def _line(strong: Sequence[str], name: str) -> str:
    """The line style that tells one of several quantities of one arm from the others."""
    return _LINES[strong.index(name) % len(_LINES)] if name in strong else "-"


def _name_lines(axes: Axes, series: Sequence[Series], color: str) -> None:
    """Name every strong line of an arm at its end, where there are several; names keep apart."""
    strong = [each for each in series if each.headline and len(each.at) and np.isfinite(error_bars(each.values)[0][-1])]
    if len(strong) < 2:
        return
    low, high = axes.get_ylim()
    height, below = 72 * axes.get_window_extent().height / axes.figure.dpi, -np.inf
    values = [error_bars(each.values, scale=100.0 if each.unit == "percent" else 1.0)[0][-1] for each in strong]
    names = dict(zip([each.name for each in strong], _different([each.name for each in strong]), strict=True))
    for value, each in sorted(zip(values, strong, strict=True), key=lambda pair: pair[0]):
        at = (value - low) / (high - low) * height
        below = max(at, below + _NAME_POINTS)
        axes.annotate(
            plain(names[each.name]), (each.at[-1], value), xytext=(6, below - at), textcoords="offset points", color=color,
            fontsize=8, va="center", annotation_clip=False,
        )  # fmt: skip


def _different(names: Sequence[str]) -> list[str]:
    """The words of every name without those that all names begin or end with."""
    words = [name.split() for name in names]
    most = min(map(len, words)) - 1
    first = next((k for k in range(most) if len({each[k] for each in words}) > 1), most)
    last = next((k for k in range(most - first) if len({each[-1 - k] for each in words}) > 1), most - first)
    return [" ".join(each[first : len(each) - last]) for each in words]


def _mark_half(axes: Axes, arm: str, half: HalfChange, color: str, height: float) -> None:
    """A triangle at the step of half of the change, and its interval as a bar, above the lower edge of the panel."""
    across = axes.get_xaxis_transform()
    span = axes.plot(
        [half.step.low, half.step.high], [height] * 2, transform=across, color=color, linewidth=2.2, alpha=0.55
    )
    mark = axes.plot([half.step.value], [height], transform=across, color=color, marker="^", markersize=6, zorder=4)
    tell(axes, {"arm": arm}, [span, mark])


def _name(axes: Axes, series: Sequence[Series], panel: str) -> None:
    strong = list(dict.fromkeys(each.name for each in series if each.headline))
    units = list(dict.fromkeys("%" if each.unit == "percent" else each.unit for each in series if each.unit != "plain"))
    unit = f" ({', '.join(units)})" if units else ""
    detail = f": {', '.join(strong)}" if strong else ""
    axes.set_title(labels([f"{panel}{detail}{unit}"], width=105)[0])
    axes.margins(y=0.2)
    axes.autoscale_view()


def _axis(axes: Axes, found: Timeline) -> None:
    places = [place for arm in found.arms.values() for place in arm.at]
    step_scale(axes, min(places), max(places))
    axes.set_xlabel(f"{'optimizer step' if found.axis == 'steps' else 'tokens read'} ({plain(found.base)} at 0)")


def order_figure(found: Timeline) -> Figure:
    """Where half of the change is reached, of every quantity that stands for a panel, one row per quantity and one color per arm."""
    colors, arms = model_colors(list(found.arms)), list(found.arms)
    halves = {arm: {half.name: half for half in found.arms[arm].panels.halves if not half.untold} for arm in arms}
    names = list(dict.fromkeys(name for arm in arms for name in halves[arm]))
    with house_style():
        figure = new_figure(9.5, 0.36 * len(names) * max(1.0, 0.7 * len(arms)) + 1.3)
        axes = figure.subplots()
        for number, arm in enumerate(arms):
            for name, half in halves[arm].items():
                row = names.index(name) + (number - (len(arms) - 1) / 2) * 0.55 / max(1, len(arms) - 1)
                span = axes.plot(
                    [half.step.low, half.step.high], [row, row], color=colors[arm], linewidth=2.4, alpha=0.5
                )
                mark = axes.plot(
                    [half.step.value], [row], color=colors[arm], marker=MARKS[number % len(MARKS)], markersize=7
                )
                tell(
                    axes,
                    arm,
                    [span, mark],
                    [(half.step.value, row)],
                    [half.step],
                    names=[name],
                    unit=found.axis,
                    scale=1,
                )
            axes.plot([], [], color=colors[arm], marker=MARKS[number % len(MARKS)], linewidth=2.4, label=plain(arm))
        axes.set_yticks(np.arange(len(names)), labels(names, width=34))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        for row in range(1, len(names), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=SHADE, linewidth=0, zorder=0)
        axes.grid(visible=True, axis="x")
        _axis(axes, found)
        axes.set_title(title_of("half of the change is reached"), color=INK)
        legend(figure, *axes.get_legend_handles_labels())
        return figure
