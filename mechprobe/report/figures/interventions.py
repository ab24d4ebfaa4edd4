"""Figures of the dose curve and of the collateral."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mechprobe.formatting import edit_title, number
from mechprobe.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    error_bars,
    house_style,
    new_figure,
    plain,
)
from mechprobe.types import POOLED

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, GREY, SKY, RED)
_ROLES = {"selected": BLUE, "compare": SKY, "ceiling": INK, "recon": GREEN, "baseline": RED}
"""Set kind → color of its bar."""


def dose_figure(curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], tasks: Sequence[str]) -> Figure:
    """Change of accuracy against the strength of an edit, with 95 % intervals: one panel per edit, one line per task.

    Args:
        curves: Title → ``(strength, condition)``, rising.
        tasks: Order of the tasks in the legend.
    """
    with house_style():
        figure = new_figure(max(6.0, 4.6 * len(curves)), 3.4)
        panels = np.atleast_1d(figure.subplots(1, len(curves), sharey=True))
        for axes, (title, points) in zip(panels, curves.items(), strict=True):
            axes.axhline(0, color=INK, linewidth=0.9)
            x = np.arange(len(points))
            for index, task in enumerate(tasks):
                values, errors = error_bars(
                    [condition["accuracy_delta"].get(task, (None,) * 3) for _, condition in points]
                )
                color, mark = _COLORS[index % len(_COLORS)], MARKS[index % len(MARKS)]
                width = 2.2 if task == POOLED else 1.2
                axes.errorbar(
                    x + 0.04 * (index - len(tasks) / 2), values, errors, color=INK if task == POOLED else color, marker=mark,
                    markersize=5, capsize=2, linewidth=width, label=plain(task), zorder=5 if task == POOLED else 3,
                )  # fmt: skip
            axes.set_xticks(x, [f"{value:g}" for value, _ in points])
            axes.set_xlabel("strength")
            axes.set_title(plain(title))
        panels[0].set_ylabel("accuracy change (points)")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3 if len(curves) == 1 else 6
        )
        return figure


def collateral_figure(conditions: Sequence[Mapping[str, Any]], other_tasks: Sequence[str]) -> Figure:
    """KL from the clean to the edited host on other text, and the change of accuracy on the other tasks.

    Args:
        conditions: Those whose collateral was measured.
        other_tasks: Tasks that did not select features; without any there is only one panel.
    """
    y = np.arange(len(conditions))[::-1]
    labels = [plain(f"{edit_title(c)}: {c['features']}") for c in conditions]
    colors = [_ROLES.get(c["set_kind"], GREY) for c in conditions]
    with house_style():
        figure = new_figure(9.4 if other_tasks else 6.5, 0.28 * len(conditions) + 1.3)
        panels = np.atleast_1d(figure.subplots(1, 2 if other_tasks else 1, sharey=True))
        values, errors = error_bars([c["collateral"]["kl"] for c in conditions], scale=1.0)
        panels[0].barh(y, values, color=colors, height=0.6)
        panels[0].errorbar(values, y, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        positive = [number(value) for value in values if number(value) > 0]
        if len(positive) == len(values) > 0:
            panels[0].set_xscale("log")
            panels[0].set_xlim(min(positive) / 3, None)
        else:
            panels[0].set_xscale("symlog", linthresh=min(positive, default=1.0))
            panels[0].set_xlim(0, None)
        panels[0].set_yticks(y, labels, fontsize=8)
        panels[0].grid(axis="x")
        panels[0].set_title("other text")
        panels[0].set_xlabel("KL (nats per token)")
        for index, task in enumerate(other_tasks):
            deltas, spans = error_bars([c["accuracy_delta"].get(task, (None,) * 3) for c in conditions])
            panels[1].errorbar(
                deltas, y + 0.12 * index, xerr=spans, fmt=MARKS[index % len(MARKS)], color=_COLORS[index % len(_COLORS)],
                markersize=5, capsize=2, linewidth=1.2, label=plain(task),
            )  # fmt: skip
        if other_tasks:
            panels[1].axvline(0, color=INK, linewidth=0.9)
            panels[1].set_title("other tasks")
            panels[1].set_xlabel("accuracy change (points)")
            panels[1].legend(loc="best")
        return figure
