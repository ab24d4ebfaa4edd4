"""The figures of an emergence report, from the values of ``emergence.json`` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from mechprobe.report.figures.style import INK, MARKS, house_style, model_colors, new_figure, plain

Courses = Sequence[Mapping[str, Any]]
"""One arm in the dictionary of each seed."""
Arms = Mapping[str, Courses]
Spreads = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Arm to the name of a number to its spread over seeds: ``over_seeds`` of ``emergence.json``."""

_ENDS = ("mean", "low", "high")
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
    cells = _cells([cell[:3] for cell in course["curves"][name]]) * factor
    progress = 100 * np.array(course["progress"])
    if len(cells) < len(progress):  # base stands at 0 by definition
        cells = np.vstack([np.zeros(3), cells])
    if not first:
        axes.plot(progress, cells[:, 0], color=color, linewidth=0.8, alpha=0.6)
        return
    axes.fill_between(progress, cells[:, 1], cells[:, 2], color=color, alpha=0.18, linewidth=0)
    axes.plot(progress, cells[:, 0], color=color, marker=mark, markersize=5, linewidth=1.8, label=plain(label))


def overlap_figure(arms: Arms, spreads: Spreads) -> Figure:
    """Overlap of the sets of highest NRN between checkpoints: |A∩B|/top above, Jaccard below, one column per arm.

    With several seeds a cell is their mean, the smallest and the largest below it.
    """
    rows: list[tuple[str, Mapping[str, str]]] = [
        ("overlap", {name: f"|A∩B| / {courses[0]['top']}" for name, courses in arms.items()}),
        ("jaccard", dict.fromkeys(arms, "Jaccard")),
    ]
    labels = {name: courses[0]["labels"] for name, courses in arms.items()}
    return _matrices(spreads, labels, rows, "share of features in common")


def pairs_figure(pairs: Arms, labels: Mapping[str, Sequence[str]], spreads: Spreads) -> Figure:
    """The same for dictionaries trained apart and matched by decoder: top sets above, all live features below."""

    def title(arm: str, key: str, short: str) -> str:
        ceiling = spreads[arm][f"ceiling_{key}"]
        return f"{short} (other seed: {_percents(*(_number(ceiling[end][0]) for end in _ENDS))} %)"

    rows: list[tuple[str, Mapping[str, str]]] = [
        (
            "pairs_overlap",
            {name: title(name, "overlap", f"top {courses[0]['top']}") for name, courses in pairs.items()},
        ),
        ("pairs_found_share", {name: title(name, "found_share", "live") for name in pairs}),
    ]
    return _matrices(spreads, labels, rows, "share of the row's features found again")


def _matrices(
    spreads: Spreads, labels: Mapping[str, Sequence[str]], rows: Sequence[tuple[str, Mapping[str, str]]], said: str
) -> Figure:
    """One column an arm of ``labels``, one row for each of ``(spread, arm to title)``."""
    wide = max(4.2, 0.62 * max(map(len, labels.values())))
    with house_style():
        figure = new_figure(max(4.6, wide * len(labels)), 1.76 * wide)
        panels = figure.subplots(len(rows), len(labels), squeeze=False)
        image, n = None, 1
        for row, (key, titles) in enumerate(rows):
            for axes, name in zip(panels[row], labels, strict=True):
                mean, low, high = (_cells(spreads[name][key][end]) for end in _ENDS)
                for end in (low, high):
                    np.fill_diagonal(end, np.nan)  # a set is itself whatever the seed
                image = matrix_panel(axes, mean, labels[name], ends=(low, high))
                n = max(n, spreads[name][key]["n"])
                axes.set_title(plain(f"{name}: {titles[name]}"))
        if image is not None:
            seeds = "one seed: no interval" if n == 1 else f"mean [smallest, largest] of {n} seeds"
            figure.colorbar(image, ax=panels, shrink=0.6, label=f"{said}\n({seeds})")
        return figure


def matrix_panel(
    axes: Axes,
    matrix: Sequence[Sequence[Any]] | ndarray,
    labels: Sequence[str],
    *,
    ends: tuple[ndarray, ndarray] | None = None,
) -> Any:
    """One matrix of shares with the numbers written in, in percent; returns the image.

    Args:
        axes: Where.
        matrix: Shares.
        labels: Of rows and columns.
        ends: Lower and upper ends, written below the numbers; none where they are None or NaN.
    """
    values = _cells(matrix)
    low, high = (np.full_like(values, np.nan),) * 2 if ends is None else ends
    image = axes.imshow(values, vmin=0, vmax=1, cmap="Blues")
    for cell, value in np.ndenumerate(values):
        row, column = cell
        text = "-" if np.isnan(value) else _percents(value, float(low[cell]), float(high[cell]), between="\n")
        color = "white" if value > 0.6 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=7 if "\n" in text else 8.5, color=color)
    axes.set_xticks(range(len(labels)), [plain(label) for label in labels])
    axes.set_yticks(range(len(labels)), [plain(label) for label in labels])
    axes.set_xlabel("checkpoint (step)")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return image


def _percents(value: float, low: float, high: float, *, between: str = " ") -> str:
    """``12``, or ``12 [9, 15]`` where there are ends."""
    text = f"{100 * value:.0f}"
    return text if np.isnan(low) else f"{text}{between}[{100 * low:.0f}, {100 * high:.0f}]"


def causal_figure(causal: Mapping[str, Mapping[str, Any]], arms: Arms) -> Figure:
    """How far causal strength moved from base (RelIE), and whether features of higher NRN gained it.

    Bands are 95 % bootstrap intervals over prompts, where there are any.
    """
    colors = model_colors(list(causal))
    panels = (
        ("departure", "share of causal strength that moved (RelIE)", (0, None)),
        ("rank_correlation", "rank correlation of NRN and RelIE", (-1, 1)),
    )
    with house_style():
        figure = new_figure(9.5, 3.3)
        both = figure.subplots(1, 2)
        for axes, (key, title, bounds) in zip(both, panels, strict=True):
            for (arm, course), mark in zip(causal.items(), MARKS, strict=False):
                progress, cells = (
                    100 * np.array(arms[arm][0]["progress"][1:]),
                    _cells([cell[:3] for cell in course[key]]),
                )
                style = {"color": colors[arm], "marker": mark, "markersize": 5, "linewidth": 1.8, "label": plain(arm)}
                axes.fill_between(progress, cells[:, 1], cells[:, 2], color=colors[arm], alpha=0.18, linewidth=0)
                axes.plot(progress, cells[:, 0], **style)
            axes.set_title(title)
            axes.set_ylim(*bounds)
            axes.set_xlim(0, 102)
            axes.set_xlabel("training done (%)")
        both[1].axhline(0, color=INK, linewidth=0.8)
        figure.legend(*both[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(causal))
        return figure


def _cells(matrix: Sequence[Sequence[Any]] | ndarray) -> ndarray:
    """Numbers of JSON, null as NaN."""
    return np.array([[_number(cell) for cell in row] for row in matrix])


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
