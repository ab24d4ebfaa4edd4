"""Figures of the interventions: every edit of the selected set with its controls, the dose curve, and the collateral."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mechprobe.formatting import edit_title, number
from mechprobe.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKS,
    NOT_MEASURED,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    dots,
    error_bars,
    house_style,
    labels,
    legend,
    logarithmic,
    new_figure,
    plain,
    title_of,
)
from mechprobe.report.figures.told import tell
from mechprobe.types import POOLED

_SIDE_BY_SIDE = 7
"""Tasks up to which two edits stand side by side."""
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, GREY, SKY, RED)
_ROLES = {"selected": BLUE, "compare": SKY, "ceiling": INK, "recon": GREEN, "baseline": RED}
"""Set kind → color of its bar."""
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
    n_columns = min(2, len(panels)) if len(tasks) <= _SIDE_BY_SIDE else 1
    n_rows = -(-len(panels) // n_columns)
    with house_style():
        wide = max(5.1 if n_columns > 1 else 6.5, 0.8 * len(tasks))
        figure = new_figure(wide * n_columns, 2.9 * n_rows + 0.9)
        grid = figure.subplots(n_rows, n_columns, sharey="row", squeeze=False).ravel()
        seen: dict[str, Line2D] = {}
        for axes, panel in zip(grid, panels, strict=False):
            _panel(axes, panel, tasks, seen)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for index in range(0, len(panels), n_columns):
            grid[index].set_ylabel(unit)
        legend(figure, list(seen.values()), [str(handle.get_label()) for handle in seen.values()], below=True)
        return figure


def _panel(axes: Axes, panel: Mapping[str, Any], tasks: Sequence[str], seen: dict[str, Line2D]) -> None:
    axes.axhline(0, color=INK, linewidth=0.9)
    rng = np.random.default_rng(0)
    for place, task in enumerate(tasks):
        _ceiling(axes, panel, place, task, seen)
        _random(axes, panel, place, task, rng, seen)
        _selected(axes, panel, place, task, seen, main=task == POOLED or POOLED not in tasks)
        _others(axes, panel, place, task, seen)
    axes.set_title(title_of(panel["title"]))
    axes.set_xticks(range(len(tasks)), labels(tasks, width=12), fontsize=8.5)
    if tasks[-1] == POOLED and len(tasks) > 1:
        axes.axvline(len(tasks) - 1.5, color=GREY, linestyle=":", linewidth=1)
    axes.set_xlim(-0.6, len(tasks) - 0.4)
    axes.tick_params(axis="x", length=0)


def _ceiling(axes: Axes, panel: Mapping[str, Any], place: int, task: str, seen: dict[str, Line2D]) -> None:
    if not panel.get("ceiling"):
        return
    cell = [panel["ceiling"].get(task)]
    value = 100 * number(cell[0])
    drawn = axes.plot([place - 0.38, place + 0.47], [value, value], color=INK, linewidth=2.2, solid_capstyle="butt")
    series = {"shown": "ceiling: whole residual", "task": task}
    tell(axes, series, drawn, [(place + 0.4, value)], [cell], unit="points", main=task == POOLED)
    seen["ceiling"] = Line2D([], [], color=INK, linewidth=2.2, label=series["shown"])


def _random(
    axes: Axes, panel: Mapping[str, Any], place: int, task: str, rng: np.random.Generator, seen: dict[str, Line2D]
) -> None:
    draws = [number(value) for value in panel.get("random", {}).get(task, [])]
    if not draws:
        return
    middle, values = place - 0.27, 100 * np.array(draws)
    drawn = dots(axes, middle + rng.uniform(-0.1, 0.1, len(draws)), values, size=4)
    names = [f"one of {len(draws)} draws"] * len(draws)
    # A hand cannot tell the jitter of points, so that all are where their mean is.
    at, cells = [(middle, value) for value in values], [[value] for value in draws]
    tell(axes, {"shown": "random sets, matched", "task": task}, drawn, at, cells, names=names, unit="points")
    seen["random"] = _handle("o", GREY, f"random sets, matched ({len(draws)} draws)", markersize=4)


def _selected(
    axes: Axes, panel: Mapping[str, Any], place: int, task: str, seen: dict[str, Line2D], *, main: bool
) -> None:
    cell = panel["selected"].get(task, NOT_MEASURED)
    values, errors = error_bars([cell])
    drawn = axes.errorbar(
        [place + 0.09], values, errors, fmt="D", color=BLUE, markersize=6.5, capsize=3, linewidth=1.5, zorder=6
    )
    tell(
        axes,
        {"shown": "selected features", "task": task},
        drawn,
        [(place + 0.09, values[0])],
        [cell],
        unit="points",
        main=main,
    )
    seen["selected"] = _handle("D", BLUE, "selected features (95 % interval)")


def _others(axes: Axes, panel: Mapping[str, Any], place: int, task: str, seen: dict[str, Line2D]) -> None:
    """Means of other controls, and the forced prefix."""
    hollow = {"markerfacecolor": "none", "markersize": 7}
    found: list[tuple[str, str, str, float, str, Mapping[str, Any], dict[str, Any]]] = [
        (kind, *_OTHERS[kind][:3], panel.get("labels", {}).get(kind, _OTHERS[kind][3]), by_task, {"markersize": 5})
        for kind, by_task in panel.get("others", {}).items()
        if kind in _OTHERS
    ]
    if panel.get("baseline"):
        label = panel.get("baseline_label") or "baseline"
        found.append(("baseline", "s", ORANGE, -0.06, label, panel["baseline"], hollow))
    for kind, mark, color, shift, label, by_task, look in found:
        value = 100 * number(by_task.get(task))
        drawn = axes.plot(
            [place + shift], [value], linestyle="none", marker=mark, color=color, markeredgewidth=1.4, zorder=4, **look
        )
        tell(
            axes, {"shown": label, "task": task}, drawn, [(place + shift, value)], [[by_task.get(task)]], unit="points"
        )
        seen[kind] = _handle(mark, color, plain(label), **look)


def _handle(mark: str, color: str, label: str, **options: Any) -> Line2D:
    return Line2D([], [], linestyle="none", marker=mark, color=color, markeredgewidth=1.4, label=label, **options)


def dose_figure(curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], tasks: Sequence[str]) -> Figure:
    """Change of accuracy against the strength of an edit, with 95 % intervals: one panel per edit, one line per task.

    Args:
        curves: Title → ``(strength, condition)``, rising.
        tasks: Order of the tasks in the legend.
    """
    with house_style():
        figure = new_figure(max(6.0, 4.6 * len(curves)), 3.4)
        panels, names = np.atleast_1d(figure.subplots(1, len(curves), sharey=True)), labels(tasks, width=28, lines=2)
        for axes, (title, points) in zip(panels, curves.items(), strict=True):
            axes.axhline(0, color=INK, linewidth=0.9)
            x = np.arange(len(points))
            for index, task in enumerate(tasks):
                values, errors = error_bars(
                    [condition["accuracy_delta"].get(task, (None,) * 3) for _, condition in points]
                )
                color, mark = _COLORS[index % len(_COLORS)], MARKS[index % len(MARKS)]
                width, at = 2.2 if task == POOLED else 1.2, x + 0.04 * (index - len(tasks) / 2)
                drawn = axes.errorbar(
                    at, values, errors, color=INK if task == POOLED else color, marker=mark,
                    markersize=5, capsize=2, linewidth=width, label=names[index], zorder=5 if task == POOLED else 3,
                )  # fmt: skip
                cells = [condition["accuracy_delta"].get(task, (None,) * 3) for _, condition in points]
                doses = [f"strength {value:g}" for value, _ in points]
                tell(
                    axes,
                    task,
                    drawn,
                    zip(at, values, strict=True),
                    cells,
                    names=doses,
                    unit="points",
                    main=task == POOLED,
                )
            axes.set_xticks(x, [f"{value:g}" for value, _ in points])
            axes.set_xlabel("strength")
            axes.set_title(title_of(title))
        panels[0].set_ylabel("accuracy change (points)")
        legend(figure, *panels[0].get_legend_handles_labels())
        return figure


def collateral_figure(conditions: Sequence[Mapping[str, Any]], other_tasks: Sequence[str]) -> Figure:
    """KL from the clean to the edited host on other text, and the change of accuracy on the other tasks.

    Args:
        conditions: Those whose collateral was measured.
        other_tasks: Tasks that did not select features; without any there is only one panel.
    """
    y = np.arange(len(conditions))[::-1]
    colors = [_ROLES.get(c["set_kind"], GREY) for c in conditions]
    with house_style():
        figure = new_figure(9.4 if other_tasks else 6.5, 0.28 * len(conditions) + 1.3)
        panels = np.atleast_1d(figure.subplots(1, 2 if other_tasks else 1, sharey=True))
        values, errors = error_bars([c["collateral"]["kl"] for c in conditions], scale=1.0)
        panels[0].barh(y, values, color=colors, height=0.6)
        panels[0].errorbar(values, y, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        sets = [f"{edit_title(c)}: {c['features']}" for c in conditions]
        chosen = {name for name, c in zip(sets, conditions, strict=True) if c["set_kind"] in ("selected", "ceiling")}
        cells = [c["collateral"]["kl"] for c in conditions]
        tell(
            panels[0],
            "",
            (),
            zip(values, y, strict=True),
            cells,
            names=sets,
            unit="nats per token",
            scale=1,
            main=chosen,
        )
        positive = [number(value) for value in values if number(value) > 0]
        if len(positive) == len(values) > 0:
            logarithmic(panels[0].xaxis)
            panels[0].set_xlim(min(positive) / 3, None)
        else:
            panels[0].set_xscale("symlog", linthresh=min(positive, default=1.0))
            panels[0].set_xlim(0, None)
        rows = labels(sets, width=60, lines=1)
        panels[0].set_yticks(y, rows, fontsize=8)
        panels[0].grid(axis="x")
        panels[0].set_title("other text")
        panels[0].set_xlabel("KL (nats per token)")
        names = labels(other_tasks, width=28, lines=2)
        for index, task in enumerate(other_tasks):
            deltas, spans = error_bars([c["accuracy_delta"].get(task, (None,) * 3) for c in conditions])
            drawn = panels[1].errorbar(
                deltas, y + 0.12 * index, xerr=spans, fmt=MARKS[index % len(MARKS)], color=_COLORS[index % len(_COLORS)],
                markersize=5, capsize=2, linewidth=1.2, label=names[index],
            )  # fmt: skip
            cells = [c["accuracy_delta"].get(task, (None,) * 3) for c in conditions]
            tell(
                panels[1],
                task,
                drawn,
                zip(deltas, y + 0.12 * index, strict=True),
                cells,
                names=sets,
                unit="points",
                main=chosen,
            )
        if other_tasks:
            panels[1].axvline(0, color=INK, linewidth=0.9)
            panels[1].set_title("other tasks")
            panels[1].set_xlabel("accuracy change (points)")
            legend(figure, *panels[1].get_legend_handles_labels())
        return figure
