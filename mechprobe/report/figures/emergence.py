"""The figures of an emergence report."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from mechprobe.emergence.overlap import SeedSpread
from mechprobe.emergence.result import ArmCourse, Emergence
from mechprobe.report.figures.style import (
    CELL_INK,
    CELL_PAPER,
    INK,
    MARKS,
    cells_of,
    color_bar,
    house_style,
    legend,
    model_colors,
    new_figure,
    plain,
    step_scale,
)
from mechprobe.report.figures.told import tell
from mechprobe.statistics import Interval

Row = tuple[str, Mapping[str, str]]
"""Name of a spread over seeds, and arm → title of its matrix."""

_PANELS = (
    ("reached_norm", "change of decoder norms reached (%)", 100),
    ("reached_shift", "change of decoders reached (%)", 100),
    ("departure", "mean |NRN − ½|", 1),
    ("specific", "features with NRN beyond ⅔ or ⅓ (%)", 100),
)
_CAUSAL_PANELS = (
    ("departure", "change of causal strength (RelIE)", (0, None)),
    ("rank_correlation", "rank correlation of NRN and RelIE", (-1, 1)),
)


class StepAxis(NamedTuple):
    """The x axis: optimizer steps, logarithmic from the first checkpoint on, with base at 0; or numbers of checkpoints.

    Attributes:
        first: First step of any arm, up to which the axis is linear; 0 where a step is unknown.
        last: Last step of any arm.
    """

    first: int
    last: int

    @classmethod
    def of(cls, found: Emergence) -> "StepAxis":
        """The axis of all arms."""
        steps = [courses[0].steps for courses in found.arms.values()]
        return cls(min(map(min, steps)), max(map(max, steps))) if all(steps) else cls(0, 0)

    def places(self, course: ArmCourse) -> Float[ndarray, " column"]:
        """Where base and the checkpoints of an arm are drawn."""
        return np.array([0.0, *course.steps]) if self.first else np.arange(len(course.progress), dtype=np.float64)

    def prepare(self, axes: Axes) -> None:
        """Set scale, ticks and label."""
        if self.first:
            step_scale(axes, self.first, self.last)
            axes.set_xlabel("optimizer step")
        else:
            axes.set_xlabel("checkpoint number: EVENLY SPACED, steps unknown")


def curves_figure(found: Emergence) -> Figure:
    """Emergence curves of every arm over training: the first seed with 95 % intervals, further seeds as thin lines."""
    colors, axis = model_colors(list(found.arms)), StepAxis.of(found)
    with house_style():
        figure = new_figure(9.5, 6.2)
        panels = figure.subplots(2, 2).ravel()
        for axes, (name, title, factor) in zip(panels, _PANELS, strict=True):
            for (arm, courses), mark in zip(found.arms.items(), MARKS, strict=False):
                for number, course in enumerate(courses):
                    values = _curve(course, name) * factor
                    x = axis.places(course)
                    unit = "%" if factor == 100 else ""
                    if number == 0:
                        _with_band(axes, x, values, color=colors[arm], mark=mark, label=arm, unit=unit)
                    else:
                        drawn = axes.plot(x, values[:, 0], color=colors[arm], linewidth=0.8, alpha=0.6)
                        _tell(axes, arm, drawn, x, values, unit, f"seed {number + 1}, ")
            axes.set_title(title)
            axes.set_ylim(0, None)
            axis.prepare(axes)
        legend(figure, *panels[0].get_legend_handles_labels())
        return figure


def _curve(course: ArmCourse, name: str) -> Float[ndarray, "column 3"]:
    """Value, low and high of a curve at base and every checkpoint."""
    values = _ends(course.curves[name])
    if len(values) < len(course.progress):  # base is 0 by definition
        values = np.vstack([np.zeros(3), values])
    return values


def _ends(intervals: Iterable[Interval]) -> Float[ndarray, "cell 3"]:
    return np.array([cell[:3] for cell in intervals])


def _with_band(
    axes: Axes,
    x: Float[ndarray, " cell"],
    values: Float[ndarray, "cell 3"],
    *,
    color: str,
    mark: str,
    label: str,
    unit: str = "",
) -> None:
    """A line with marks, and a band from low to high."""
    band = axes.fill_between(x, values[:, 1], values[:, 2], color=color, alpha=0.18, linewidth=0)
    line = axes.plot(x, values[:, 0], color=color, marker=mark, markersize=5, linewidth=1.8, label=plain(label))
    _tell(axes, label, [band, line], x, values, unit)


def _tell(
    axes: Axes,
    arm: str,
    drawn: Any,
    x: Float[ndarray, " cell"],
    values: Float[ndarray, "cell 3"],
    unit: str,
    seed: str = "",
) -> None:
    names = [f"{seed}{axes.get_xlabel() or 'step'} {place:g}" if place else f"{seed}base" for place in x]
    tell(axes, arm, drawn, zip(x, values[:, 0], strict=True), values, names=names, at=x, unit=unit, scale=1)


def overlap_figure(found: Emergence) -> Figure:
    """Overlap of the sets of highest NRN between checkpoints: |A∩B|/top above, Jaccard below, one column per arm.

    With several seeds a cell shows their mean, and below it the smallest and the largest value.
    """
    rows: list[Row] = [
        ("overlap", {name: f"|A∩B| / {courses[0].top}" for name, courses in found.arms.items()}),
        ("jaccard", dict.fromkeys(found.arms, "Jaccard")),
    ]
    return _matrices(found, list(found.arms), rows, "share of features in common")


def pairs_figure(found: Emergence) -> Figure:
    """The same for pairwise dictionaries, matched by decoder: top sets above, all live features below."""
    arms = list(found.pairs)

    def title(arm: str, key: str, short: str) -> str:
        ceiling = found.over_seeds(arm)[f"ceiling_{key}"].at(0)
        return f"{short} (other seed: {_percents(*ceiling[:3])} %)"

    rows: list[Row] = [
        ("pairs_overlap", {arm: title(arm, "overlap", f"top {found.pairs[arm][0].top}") for arm in arms}),
        ("pairs_found_share", {arm: title(arm, "found_share", "live") for arm in arms}),
    ]
    return _matrices(found, arms, rows, "share of the row's features that the column has")


def _matrices(found: Emergence, arms: Sequence[str], rows: Sequence[Row], quantity: str) -> Figure:
    """One column for each arm, and one row for each of ``rows``."""
    labels = {arm: found.arms[arm][0].labels for arm in arms}
    spreads = {arm: found.over_seeds(arm) for arm in arms}
    wide = max(4.2, 0.62 * max(map(len, labels.values())))
    with house_style():
        figure = new_figure(max(4.6, wide * len(labels)), 1.76 * wide)
        panels = figure.subplots(len(rows), len(labels), squeeze=False)
        image, n = None, 1
        for row, (key, titles) in enumerate(rows):
            for axes, arm in zip(panels[row], arms, strict=True):
                spread = spreads[arm][key]
                image = matrix_panel(axes, spread.mean, labels[arm], ends=_off_diagonal(spread))
                n = max(n, spread.n)
                axes.set_title(plain(f"{arm}: {titles[arm]}"))
        if image is not None:
            seeds = "one seed: no interval" if n == 1 else f"mean [smallest, largest] of {n} seeds"
            color_bar(figure, image, panels, 0.6, f"{quantity}\n({seeds})")
        return figure


def _off_diagonal(spread: SeedSpread) -> tuple[ndarray, ndarray]:
    """Smallest and largest values, with NaN on the diagonal, where a set is compared with itself."""
    ends = (spread.low.copy(), spread.high.copy())
    for end in ends:
        np.fill_diagonal(end, np.nan)
    return ends


def matrix_panel(
    axes: Axes,
    matrix: Sequence[Sequence[float]] | ndarray,
    labels: Sequence[str],
    *,
    ends: tuple[ndarray, ndarray] | None = None,
) -> Any:
    """Draw one matrix of shares with its numbers in percent, and return the image.

    Args:
        axes: Where to draw.
        matrix: Shares.
        labels: Labels of rows and columns.
        ends: Lower and upper ends, written below the numbers where they are not NaN.
    """
    values = np.asarray(matrix, dtype=np.float64)
    low, high = (np.full_like(values, np.nan),) * 2 if ends is None else ends
    image = cells_of(axes, values)
    axes.set_aspect("equal")
    for cell, value in np.ndenumerate(values):
        row, column = cell
        text = "-" if np.isnan(value) else _percents(value, float(low[cell]), float(high[cell]), between="\n")
        color = CELL_PAPER if value > 0.6 else CELL_INK
        axes.text(column, row, text, ha="center", va="center", fontsize=7 if "\n" in text else 8.5, color=color)
    for row, label in enumerate(labels):
        names = [f"{label}, {other}" for other in labels]
        main = {names[-1]} if row == 0 and len(labels) > 1 else ()
        cells = [[values[row, column], low[row, column], high[row, column]] for column in range(len(labels))]
        tell(
            axes,
            "",
            (),
            [(column, row) for column in range(len(labels))],
            cells,
            names=names,
            interval="range over seeds",
            main=main,
        )
    axes.set_xticks(range(len(labels)), [plain(label) for label in labels])
    axes.set_yticks(range(len(labels)), [plain(label) for label in labels])
    axes.set_xlabel("checkpoint (step)")
    return image


def _percents(value: float, low: float, high: float, *, between: str = " ") -> str:
    """``12``, or ``12 [9, 15]`` with ends."""
    text = f"{100 * value:.0f}"
    return text if np.isnan(low) else f"{text}{between}[{100 * low:.0f}, {100 * high:.0f}]"


def causal_figure(found: Emergence) -> Figure:
    """How far causal strength changed from base (RelIE), and whether it grew for features of higher NRN.

    Bands are 95 % bootstrap intervals over prompts.
    """
    causal, colors, axis = found.causal, model_colors(list(found.causal)), StepAxis.of(found)
    with house_style():
        figure = new_figure(9.5, 3.3)
        both = figure.subplots(1, 2)
        for axes, (key, title, bounds) in zip(both, _CAUSAL_PANELS, strict=True):
            for (arm, course), mark in zip(causal.items(), MARKS, strict=False):
                x = axis.places(found.arms[arm][0])[1:]
                _with_band(axes, x, _ends(getattr(course, key)), color=colors[arm], mark=mark, label=arm)
            axes.set_title(title)
            axes.set_ylim(*bounds)
            axis.prepare(axes)
        both[1].axhline(0, color=INK, linewidth=0.8)
        legend(figure, *both[0].get_legend_handles_labels())
        return figure
