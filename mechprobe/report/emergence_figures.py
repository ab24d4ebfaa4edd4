"""The figures of an emergence report, from the values of ``emergence.json`` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechprobe.report.style import INK, MARKS, house_style, model_colors, new_figure, plain

Arms = Mapping[str, Sequence[Mapping[str, Any]]]
"""Arm to its course in the dictionary of each seed."""

_PANELS = (
    ("reached_norm", "change of decoder norms that is there (%)", 100),
    ("reached_shift", "change of decoders that is there (%)", 100),
    ("departure", "mean |NRN − ½|", 1),
    ("specific", "features with NRN beyond ⅔ or ⅓ (%)", 100),
)


def curves_figure(arms: Arms) -> Figure:
    """Emergence curves of every arm over training: first seed with 95 % intervals, further seeds thin."""
    colors = model_colors(list(arms))
    with house_style():
        figure = new_figure(9.5, 6.2)
        panels = figure.subplots(2, 2).ravel()
        for axes, (name, title, factor) in zip(panels, _PANELS, strict=True):
            for (arm, courses), mark in zip(arms.items(), MARKS, strict=False):
                for number, course in enumerate(courses):
                    _curve(axes, course, name, factor, color=colors[arm], mark=mark, label=arm, first=number == 0)
            axes.set_title(title)
            axes.set_xlim(-2, 102)
            axes.set_ylim(0, None)
            axes.set_xlabel("training done (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(arms))
        return figure


def _curve(
    axes: Axes,
    course: Mapping[str, Any],
    name: str,
    factor: float | int,
    *,
    color: str,
    mark: str,
    label: str,
    first: bool,
) -> None:
    cells = np.array([[_number(part) for part in cell[:3]] for cell in course["curves"][name]]) * factor
    progress = 100 * np.array(course["progress"])
    if len(cells) < len(progress):  # base stands at 0 by definition
        cells = np.vstack([np.zeros(3), cells])
    if not first:
        axes.plot(progress, cells[:, 0], color=color, linewidth=0.8, alpha=0.6)
        return
    axes.fill_between(progress, cells[:, 1], cells[:, 2], color=color, alpha=0.18, linewidth=0)
    axes.plot(progress, cells[:, 0], color=color, marker=mark, markersize=5, linewidth=1.8, label=plain(label))


def overlap_figure(arms: Arms) -> Figure:
    """Overlap of the sets of highest NRN between checkpoints: |A∩B|/top above, Jaccard below, one column per arm."""
    names = list(arms)
    with house_style():
        figure = new_figure(max(4.6, 4.2 * len(names)), 7.4)
        panels = figure.subplots(2, len(names), squeeze=False)
        image = None
        for column, name in enumerate(names):
            course = arms[name][0]
            for row, (key, title) in enumerate((("overlap", f"|A∩B| / {course['top']}"), ("jaccard", "Jaccard"))):
                image = matrix_panel(panels[row, column], course[key], course["labels"])
                panels[row, column].set_title(plain(f"{name}: {title}"))
        if image is not None:
            figure.colorbar(image, ax=panels, shrink=0.6, label="share of features in common")
        return figure


def pairs_figure(pairs: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Sequence[str]]) -> Figure:
    """The same for dictionaries trained apart and matched by decoder: top sets above, all live features below."""
    names = list(pairs)
    with house_style():
        figure = new_figure(max(4.6, 4.2 * len(names)), 7.4)
        panels = figure.subplots(2, len(names), squeeze=False)
        image = None
        for column, name in enumerate(names):
            for row, (key, short) in enumerate((("overlap", f"top {pairs[name]['top']}"), ("found_share", "live"))):
                ceiling = round(100 * _number(pairs[name]["ceiling"][key]))
                image = matrix_panel(panels[row, column], pairs[name][key], labels[name])
                panels[row, column].set_title(plain(f"{name}, {short} (other seed: {ceiling} %)"))
        if image is not None:
            figure.colorbar(image, ax=panels, shrink=0.6, label="share of the row's features found again")
        return figure


def matrix_panel(axes: Axes, matrix: Sequence[Sequence[Any]], labels: Sequence[str]) -> Any:
    """One matrix of shares with the numbers written in, in percent; returns the image."""
    values = np.array([[_number(cell) for cell in row] for row in matrix])
    image = axes.imshow(values, vmin=0, vmax=1, cmap="Blues")
    for (row, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{100 * value:.0f}"
        color = "white" if value > 0.6 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=color)
    axes.set_xticks(range(len(labels)), [plain(label) for label in labels])
    axes.set_yticks(range(len(labels)), [plain(label) for label in labels])
    axes.set_xlabel("checkpoint (step)")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return image


def causal_figure(causal: Mapping[str, Mapping[str, Any]], arms: Arms) -> Figure:
    """How far causal strength moved from base (RelIE), and whether features of higher NRN gained it."""
    colors = model_colors(list(causal))
    with house_style():
        figure = new_figure(9.5, 3.3)
        left, right = figure.subplots(1, 2)
        for (arm, course), mark in zip(causal.items(), MARKS, strict=False):
            progress = 100 * np.array(arms[arm][0]["progress"][1:])
            style = {"color": colors[arm], "marker": mark, "markersize": 5, "linewidth": 1.8, "label": plain(arm)}
            left.plot(progress, [_number(value) for value in course["departure"]], **style)
            right.plot(progress, [_number(value) for value in course["rank_correlation"]], **style)
        left.set_title("share of causal strength that moved (RelIE)")
        right.set_title("rank correlation of NRN and RelIE")
        right.axhline(0, color=INK, linewidth=0.8)
        right.set_ylim(-1, 1)
        left.set_ylim(0, None)
        for axes in (left, right):
            axes.set_xlim(0, 102)
            axes.set_xlabel("training done (%)")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(causal))
        return figure


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
