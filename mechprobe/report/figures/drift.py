"""The figures of the drift page: divergence by skill, profiles over checkpoints, updates of weights, and drift against both."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from mechprobe.drift.divergence.result import DivergenceResult, DivergenceRow
from mechprobe.drift.probe.behaviour_result import ArmCourse, Behaviour
from mechprobe.drift.probe.result import ProbeResult
from mechprobe.drift.weights.result import Group, WeightsResult
from mechprobe.emergence.arms import arm_of, last_of_arms
from mechprobe.report.figures.style import (
    BASE,
    CELL_INK,
    CELL_PAPER,
    GREY,
    INK,
    LIGHT,
    MARKS,
    cells_of,
    color_bar,
    error_bars,
    house_style,
    labels,
    legend,
    log_y,
    model_colors,
    new_figure,
    percent_axis,
    plain,
)
from mechprobe.report.figures.told import tell, tell_matrix

_SHOWN_ARMS = 6
_SOURCES = {"own": "on each model's own text", "gold": "on reference responses", "base": "on text of base"}
_NUMBERS = {
    "stable_rank": "stable rank of ΔW",
    "sv_change": "change of σ(W)",
    "angle_left": "principal angle of W, left (°)",
}
_RANKS = (("stable_rank", "stable rank of ΔW", 1), ("inside", "ΔW inside base's top subspaces (%)", 100))


def _in_order(arms: Mapping[str, ArmCourse]) -> dict[str, ArmCourse]:
    """The arms of a figure in the order of `last_of_arms`, so that an arm has one mark in all figures."""
    return {name: arms[name] for name in last_of_arms(list(arms))[:_SHOWN_ARMS]}


class _Look(NamedTuple):
    color: str
    mark: str


def _looks(models: Sequence[str]) -> dict[str, _Look]:
    """Model → color and mark of its arm; ``sft`` and ``rl`` look alike in every figure."""
    arms = list(dict.fromkeys(map(arm_of, models)))
    colors, known = model_colors(arms), {"sft": MARKS[0], "rl": MARKS[1]}
    others = [arm for arm in arms if arm not in known]
    marks = {arm: known.get(arm) or MARKS[2 + others.index(arm) % (len(MARKS) - 2)] for arm in arms}
    return {model: _Look(colors[arm_of(model)], marks[arm_of(model)]) for model in models}


def divergence_figure(found: DivergenceResult) -> Figure:
    """KL from base by skill, for the last model of every arm, with 95 % intervals; one panel per kind of text."""
    models = last_of_arms(found.models)[:_SHOWN_ARMS]
    parts = skills_of(found)
    sources = [source for source in _SOURCES if found.find(metric="kl", source=source)][:2]
    looks = _looks(models)
    with house_style():
        figure = new_figure(min(11.0, max(6.5, 1.1 * len(parts) + 1.5)), 2.5 * len(sources) + 0.7)
        panels = np.atleast_1d(figure.subplots(len(sources), 1, sharex=True, sharey=True))
        for axes, source in zip(panels, sources, strict=True):
            for index, model in enumerate(models):
                cells = [kl_of(found, model, source, part) for part in parts]
                values, errors = error_bars([cell or (None,) * 3 for cell in cells], scale=1.0)
                x = np.arange(len(parts)) + (index - (len(models) - 1) / 2) * 0.16
                drawn = axes.errorbar(
                    x, values, errors, color=looks[model].color, fmt=looks[model].mark, markersize=5.5, capsize=2.5, linewidth=1.3,
                    label=plain(model),
                )  # fmt: skip
                shown, places = [cell or (None,) * 3 for cell in cells], zip(x, values, strict=True)
                tell(axes, model, drawn, places, shown, names=parts, unit="nats per token", scale=1, main={"all"})
            log_y(axes)
            axes.set_title(_SOURCES[source])
            axes.set_xticks(range(len(parts)), labels(list(parts), width=12))
        figure.supylabel("KL(tuned ‖ base), nats per token", fontsize=9.5)
        legend(figure, *panels[0].get_legend_handles_labels())
        return figure


def skills_of(found: DivergenceResult) -> tuple[str, ...]:
    """Parts of the text that the figure and the table show: all, then every skill; tasks where no sample has a skill."""
    for by in ("skill", "task"):
        groups = dict.fromkeys(row.group for row in found.find(metric="kl", by=by) if row.group)
        if groups:
            return ("all", *sorted(groups))
    return ("all",)


def kl_of(found: DivergenceResult, model: str, source: str, part: str) -> tuple[float, float, float, int] | None:
    """KL with its interval and number of tokens, at the lowest temperature; None if it was not measured."""
    rows = found.find(metric="kl", model=model, source=source, by="all") if part == "all" else [
        row for by in ("skill", "task") for row in found.find(metric="kl", model=model, source=source, by=by, group=part)
    ]  # fmt: skip
    chosen: DivergenceRow | None = min(rows, key=lambda row: row.temperature or 0.0, default=None)
    return None if chosen is None else (chosen.value, chosen.low, chosen.high, chosen.n)


def profiles_figure(behaviour: Behaviour, base: str) -> Figure:
    """Score of every skill over training, one line per arm with its interval; base is the first point of all."""
    skills, arms = list(behaviour.skills), _in_order(behaviour.arms)
    looks, columns = _looks(list(arms)), min(3, len(skills))
    rows = -(-len(skills) // columns)
    with house_style():
        figure = new_figure(max(6.5, 3.1 * columns), 2.7 * rows + 0.5)
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, skill, title in zip(panels, skills, labels(skills, width=28), strict=False):
            for arm, course in arms.items():
                _draw_course(axes, behaviour, base, course, skill, looks[arm])
            axes.set_title(title)
            axes.axhline(0, color=INK, linewidth=0.8)
        panels[0].set_xlim(-5, 105)
        for axes in panels[len(skills) :]:
            axes.set_visible(False)
        for place in range(len(skills)):
            if place % columns == 0:
                percent_axis(panels[place], "score above chance (%)", low=None, high=104.0)
            if place + columns >= len(skills):
                panels[place].set_xlabel("training done (%)")
                panels[place].tick_params(labelbottom=True)
        legend(figure, *panels[0].get_legend_handles_labels())
        return figure


def _draw_course(axes: Axes, behaviour: Behaviour, base: str, course: ArmCourse, skill: str, look: _Look) -> None:
    """The line of an arm from base on, with a band; a model without checkpoints before it is one mark with a bar."""
    single = len(course.points) == 1
    if single:
        start = behaviour.profiles[base][skill].corrected
        tell(
            axes,
            base,
            _one(axes, 0.0, start, _Look(BASE, "o"), base),
            [(0, 100 * start[0])],
            [start],
            names=[base],
            at=[0],
        )
    models = [*([] if single else [base]), *(point.model for point in course.points)]
    x = 100 * np.array([*([] if single else [0.0]), *(point.progress for point in course.points)])
    values, errors = error_bars([behaviour.profiles[model][skill].corrected for model in models])
    shape: dict[str, Any] = {"color": look.color, "marker": look.mark, "label": plain(course.arm)}
    drawn: list[Any] = []
    if single:
        drawn.append(_one(axes, x[0], behaviour.profiles[models[0]][skill].corrected, look, course.arm))
    else:
        band = values - errors[0], values + errors[1]
        drawn.append(axes.fill_between(x, *band, color=look.color, alpha=0.15, linewidth=0))
        drawn.append(axes.plot(x, values, markersize=4.5, linewidth=1.6, **shape))
    cells = [behaviour.profiles[model][skill].corrected for model in models]
    tell(axes, course.arm, drawn, zip(x, values, strict=True), cells, names=models, at=x)


def _one(axes: Axes, x: float, score: Sequence[Any], look: _Look, name: str) -> Any:
    """A mark with its interval; the legend has every name once."""
    values, errors = error_bars([score])
    known = axes.get_legend_handles_labels()[1]
    label = "_" if plain(name) in known else plain(name)
    return axes.errorbar([x], values, errors, color=look.color, fmt=look.mark, markersize=5.5, capsize=2.5, label=label)


def updates_figure(found: WeightsResult) -> Figure:
    """Relative norm of the update by layer and module type, one matrix per arm's last model."""
    models = last_of_arms(found.names)[:_SHOWN_ARMS]
    groups = {model: _in_layers(found.models[model].cells) for model in models}
    kinds = list(dict.fromkeys(kind for cells in groups.values() for _, kind in cells))
    layers = sorted({layer for cells in groups.values() for layer, _ in cells})
    values = {
        model: np.array([[_cell(cells, layer, kind) for kind in kinds] for layer in layers])
        for model, cells in groups.items()
    }
    top = max((float(np.nanmax(each)) for each in values.values() if np.isfinite(each).any()), default=1.0) or 1.0
    wide = max(2.6, 0.5 * len(kinds) + 0.9)
    columns = min(3, len(models), max(1, int(10.5 / wide)))
    rows, high = -(-len(models) // columns), max(1.6, 0.28 * len(layers) + 1.1)
    with house_style():
        figure = new_figure(max(6.5, columns * wide), rows * high + 0.4)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        image = None
        for axes, model in zip(panels, models, strict=False):
            image = cells_of(axes, values[model], top=top)
            _write_cells(axes, values[model], top)
            tell_matrix(axes, values[model], [f"layer {layer}" for layer in layers], kinds)
            axes.set_title(plain(model))
            axes.set_xticks(range(len(kinds)), labels(kinds, width=10), rotation=90 if len(kinds) > 10 else 0)
            axes.set_yticks(range(len(layers)), map(str, layers))
            axes.set_ylabel("layer")
        for axes in panels[len(models) :]:
            axes.set_visible(False)
        if image is not None:
            color_bar(figure, image, list(panels), 0.8, "‖ΔW‖ / ‖W‖ (%)")
        return figure


def _in_layers(cells: Sequence[Group]) -> dict[tuple[int, str], Group]:
    return {(cell.layer, cell.type): cell for cell in cells if cell.layer is not None}


def _cell(cells: Mapping[tuple[int, str], Group], layer: int, kind: str) -> float:
    found = cells.get((layer, kind))
    return float("nan") if found is None else 100 * found.relative_norm


def _write_cells(axes: Axes, values: Float[ndarray, "layer kind"], top: float) -> None:
    """Write the numbers into the cells of a matrix that is small enough."""
    if values.size > 120:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = CELL_PAPER if value > 0.6 * top else CELL_INK
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7.5, color=color)


def ranks_figure(found: WeightsResult) -> Figure:
    """Stable rank and share inside base's top subspaces by module type, each over the range of random updates of equal norm."""
    models = last_of_arms(found.names)[:_SHOWN_ARMS]
    looks = _looks(models)
    kinds = list(dict.fromkeys(
        group.type for model in models for group in found.models[model].types if group.spectral
    ))  # fmt: skip
    with house_style():
        figure = new_figure(max(6.5, 2 * (0.55 * len(kinds) + 1.6)), 3.4)
        for axes, (name, title, factor) in zip(figure.subplots(1, 2), _RANKS, strict=True):
            _draw_null(axes, found, models, kinds, name, factor)
            for index, model in enumerate(models):
                groups = {group.type: group.spectral for group in found.models[model].types if name in group.spectral}
                places = [place for place, kind in enumerate(kinds) if kind in groups]
                x = np.array(places) + (index - (len(models) - 1) / 2) * 0.17
                values = [factor * groups[kinds[place]][name].value for place in places]
                look = looks[model]
                drawn = axes.plot(
                    x, values, color=look.color, marker=look.mark, markersize=5.5, linestyle="none", label=plain(model)
                )
                cells, names = [[value] for value in values], [kinds[place] for place in places]
                unit = "%" if factor == 100 else ""
                tell(axes, model, drawn, zip(x, values, strict=True), cells, names=names, unit=unit, scale=1)
            log_y(axes)
            axes.set_title(title)
            axes.set_xticks(range(len(kinds)), labels(kinds, width=10))
            axes.margins(y=0.12)
        legend(figure, *figure.axes[0].get_legend_handles_labels())
        return figure


def _draw_null(
    axes: Axes, found: WeightsResult, models: Sequence[str], kinds: Sequence[str], name: str, factor: int
) -> None:
    """For every module type, the mean of the random updates and the band of all their draws."""
    for place, kind in enumerate(kinds):
        cells = [
            group.spectral[name]
            for model in models
            for group in found.models[model].types
            if group.type == kind and name in group.spectral
        ]
        edges = [place - 0.4, place + 0.4]
        low, high = min(cell.low for cell in cells), max(cell.high for cell in cells)
        axes.fill_between(edges, factor * low, factor * high, color=LIGHT, linewidth=0)
        mean = factor * sum(cell.null for cell in cells) / len(cells)
        label = None if place else "random updates of equal norm"
        axes.plot(edges, [mean, mean], color=GREY, linewidth=1.8, label=label)
        cell, unit = [mean, factor * low, factor * high], "%" if factor == 100 else ""
        names = [f"random updates of equal norm, {kind}"]
        tell(axes, "", (), [(place - 0.38, mean)], [cell], names=names, unit=unit, scale=1, interval="range")


def scatter_figure(found: ProbeResult) -> Figure:
    """Drift of the skill profile of every checkpoint against each number of divergence and weights."""
    behaviour = found.behaviour["right"]
    drift = {point.model: point.drift_l1 for course in behaviour.arms.values() for point in course.points}
    numbers = {name: row for name, row in found.numbers.items() if any(model in drift for model in row)}
    arms = _in_order(behaviour.arms)
    looks, columns = _looks(list(arms)), min(3, len(numbers))
    rows = -(-len(numbers) // columns)
    with house_style():
        figure, drawn = new_figure(max(6.5, 3.1 * columns), 2.8 * rows + 0.5), dict[str, Any]()
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes, (name, row) in zip(panels, numbers.items(), strict=False):
            for arm, course in arms.items():
                models = [point.model for point in course.points if point.model in row]
                if models:
                    values, errors = error_bars([drift[model] for model in models], scale=1.0)
                    x = [row[model] for model in models]
                    drawn[plain(arm)] = axes.errorbar(
                        x, values, errors, color=looks[arm].color, marker=looks[arm].mark,
                        markersize=5, linewidth=0.8, elinewidth=0.8,
                    )  # fmt: skip
                    names = [f"{model} at {_NUMBERS.get(name, name)} {row[model]:.3g}" for model in models]
                    places, cells = zip(x, values, strict=True), [drift[model][:3] for model in models]
                    tell(
                        axes,
                        arm,
                        drawn[plain(arm)],
                        places,
                        cells,
                        names=names,
                        at=x,
                        unit="",
                        scale=1,
                        main=names[-1:],
                    )
            axes.set_xlabel(labels([_NUMBERS.get(name, name)], width=34)[0])
        for axes in panels[len(numbers) :]:
            axes.set_visible(False)
        for place in range(0, len(numbers), columns):
            panels[place].set_ylabel("drift from base (L1 of scores)")
        legend(figure, list(drawn.values()), list(drawn))
        return figure


def draw_drift(
    divergence: DivergenceResult | None, probe: ProbeResult | None, weights: WeightsResult | None
) -> dict[str, Any]:
    """Every figure whose data exist, by name."""
    figures: dict[str, Any] = {}
    if divergence is not None:
        figures["divergence"] = divergence_figure(divergence)
    if probe is not None:
        figures["profiles"] = profiles_figure(probe.behaviour["right"], probe.base)
        if any(probe.numbers.values()):
            figures["drift_against"] = scatter_figure(probe)
    if weights is not None:
        figures["updates"] = updates_figure(weights)
        if any(group.spectral for update in weights.models.values() for group in update.types):
            figures["update_ranks"] = ranks_figure(weights)
    return figures
