"""Figures of the crosscoder: its training curves, and how the decoder norm is shared among models."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechprobe.formatting import number
from mechprobe.report.figures.style import (
    BLUE,
    GREEN,
    INK,
    MARKS,
    ORANGE,
    PURPLE,
    house_style,
    legend,
    log_y,
    model_colors,
    new_figure,
    plain,
)
from mechprobe.report.figures.told import tell

Line = Mapping[str, Any]
_HOVERS = 40


def shares_figure(summary: Mapping[str, Any]) -> Figure:
    """Histograms, from ``features/summary.json``, of the MAS of every model and the NRN of every tuned model."""
    models, base = list(summary["models"]), summary["base"]
    tuned = [name for name in models if name != base]
    with house_style():
        figure = new_figure(9.0, 3.3)
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_histograms(left, summary, "mas", models, equal=1 / len(models))
        _draw_histograms(right, summary, "nrn", tuned, equal=0.5)
        left.set_title("MAS: a model's share of the decoder norm")
        right.set_title(plain(f"NRN: tuned model against {base}"))
        largest = max([1, *(max(histogram["counts"]) for histogram in summary["histograms"].values())])
        ticks = [0, *(10**power for power in range(7) if 10**power <= largest)]
        left.set_ylim(0, 1.6 * largest)
        left.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        left.set_ylabel(f"features (of {summary['n_alive']:,} live)")
        legend(figure, *left.get_legend_handles_labels())
        return figure


def _draw_histograms(
    axes: Axes, summary: Mapping[str, Any], statistic: str, names: Sequence[str], *, equal: float
) -> None:
    colors = model_colors(list(summary["models"]))
    for name in names:
        histogram = summary["histograms"][f"{statistic}_{name}"]
        edges, counts = np.array(histogram["edges"]), np.array(histogram["counts"], dtype=float)
        drawn = axes.stairs(counts, edges, color=colors[name], linewidth=1.8, label=plain(name))
        middles = (edges[:-1] + edges[1:]) / 2
        bins = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
        cells = [[count] for count in counts]
        tell(
            axes,
            name,
            drawn,
            zip(middles, counts, strict=True),
            cells,
            names=bins,
            at=middles,
            unit="features",
            scale=1,
            main={bins[int(counts.argmax())]},
        )
    axes.axvline(equal, color=INK, linestyle=":", linewidth=1)
    axes.annotate(
        "equal", (equal, 0.98), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
        fontsize=8.5, va="top",
    )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_yscale("symlog", linthresh=1, linscale=0.4)


def training_figure(lines: Sequence[Line], *, gate: float | None = None) -> Figure:
    """FVE of every model with the FVE that the gate requires, loss, and share of dead latents over training tokens."""
    tokens = np.array([line["tokens"] for line in lines], dtype=float)
    unit, label = (1e6, "million tokens") if tokens.max() >= 2e6 else (1e3, "thousand tokens")
    with house_style():
        figure = new_figure(9.0, 3.3)
        left, middle, right = figure.subplots(1, 3)
        _draw_fve(left, lines, tokens / unit, gate)
        middle.plot(tokens / unit, [number(line.get("loss")) for line in lines], color=INK, linewidth=1.6)
        _tell_course(middle, "", (), lines, tokens / unit, [number(line.get("loss")) for line in lines])
        log_y(middle)
        middle.set_title("training loss")
        right.plot(tokens / unit, [100 * number(line.get("dead_frac")) for line in lines], color=INK, linewidth=1.6)
        _tell_course(right, "", (), lines, tokens / unit, [100 * number(line.get("dead_frac")) for line in lines], "%")
        right.set_ylim(0, 100)
        right.set_title("dead latents (%)")
        for axes in (left, middle, right):
            axes.set_xlabel(label)
            axes.set_xlim(0, None)
        legend(figure, *left.get_legend_handles_labels())
        return figure


def _draw_fve(axes: Axes, lines: Sequence[Line], x: np.ndarray, gate: float | None) -> None:
    models = list(lines[0].get("fve", {}))
    colors = model_colors(models)
    for name, mark in zip(models, MARKS, strict=False):
        values = [number(line["fve"][name]) for line in lines]
        drawn = axes.plot(x, values, color=colors[name], label=plain(name), linewidth=1.6)
        drawn += axes.plot(x[-1:], values[-1:], color=colors[name], marker=mark, markersize=6)
        _tell_course(axes, name, drawn, lines, x, values)
    if gate is not None:
        axes.axhline(gate, color=INK, linestyle=":", linewidth=1)
        # Beside the panel no curve crosses the word.
        place = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center", "annotation_clip": False}
        axes.annotate("gate", (1.01, gate), fontsize=8.5, **place)
    low = min(1.0, max(0.0, _lower_limit(lines, models)))
    axes.set_ylim(low if gate is None else min(low, gate - 0.02), 1.0)
    axes.set_title("FVE (per batch)")


def _tell_course(
    axes: Axes, series: str, drawn: Any, lines: Sequence[Line], x: np.ndarray, values: Sequence[float], unit: str = ""
) -> None:
    """Tell a quantity over training. Of many steps, a hand reaches every one that makes about `_HOVERS` in all."""
    every = -(-len(lines) // _HOVERS)
    for reached in (True, False):
        chosen = [i for i in range(len(lines)) if (i % every == 0 or i == len(lines) - 1) == reached]
        names = [f"{lines[i]['tokens']:,.0f} tokens" for i in chosen]
        places = [(x[i], values[i]) for i in chosen]
        tell(axes, series, drawn, places, [[values[i]] for i in chosen], names=names, at=[lines[i]["tokens"] for i in chosen],
             unit=unit, scale=1, hover=reached)  # fmt: skip


def _lower_limit(lines: Sequence[Line], models: Sequence[str]) -> float:
    """Lower end of the FVE axis, a multiple of 0.05; the steep first tenth of the training is cut off."""
    values = [number(line["fve"][name]) for line in lines[len(lines) // 10 :] for name in models]
    finite = [value for value in values if np.isfinite(value)]
    return 0.05 * np.floor((min(finite) - 0.02) / 0.05) if finite else 0.0


def quality_figure(fve: Mapping[str, Mapping[str, float]], *, gate: float | None = None) -> Figure:
    """FVE on held-out rows: model → dictionary or read-out → value, as points, with the FVE that the gate requires."""
    kinds = list(dict.fromkeys(kind for found in fve.values() for kind in found))
    with house_style():
        figure = new_figure(6.5, 0.4 * len(fve) + 1.5)
        axes = figure.subplots()
        for place, (kind, color) in enumerate(zip(kinds, (BLUE, ORANGE, GREEN, PURPLE), strict=False)):
            values = [number(found.get(kind)) for found in fve.values()]
            drawn = axes.plot(
                values,
                range(len(fve)),
                linestyle="none",
                marker=MARKS[place],
                markersize=9 - 2 * place,
                color=color,
                label=plain(kind),
            )
            places, cells = zip(values, range(len(fve)), strict=True), [[value] for value in values]
            tell(axes, kind, drawn, places, cells, names=list(fve), unit="", scale=1)
        if gate is not None:
            axes.axvline(gate, color=INK, linestyle=":", linewidth=1, label="gate")
        axes.set_yticks(range(len(fve)), list(map(plain, fve)))
        axes.set_ylim(len(fve) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set_xlabel("FVE on held-out rows")
        legend(figure, *axes.get_legend_handles_labels())
        return figure
