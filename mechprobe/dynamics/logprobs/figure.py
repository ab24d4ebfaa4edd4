"""The figure of a stage: Δ of the token classes over training, their excess over matched controls, and backtracking, by arm."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mechprobe.dynamics.logprobs.result import LearningRow, LogprobsResult
from mechprobe.environment import require
from mechprobe.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 160
_COLORS = ("#1f5fa8", "#c26a15", "#2e7d4f", "#7a4ea3", "#b3261e", "#6b6b6b", "#1b9aa8", "#a88f1b", "#444444", "#d16ba5")


def draw_log_probs(found: LogprobsResult, source: str | None = None) -> "Figure":
    """A column for each arm: mean Δ by class, excess over controls, and words of backtracking in generated text.

    Args:
        found: The result.
        source: Source of the traces in the upper panels; the last one by default, which is that of a tuned model where one wrote traces.
    """
    require("matplotlib", "The figure of log-probabilities")
    from matplotlib.figure import Figure

    source = source or found.sources[-1]
    rows = 3 if found.backtracking else 2
    figure = Figure(figsize=(5.0 * len(found.arms), 3.1 * rows), layout="constrained")
    panels = figure.subplots(rows, len(found.arms), squeeze=False)
    for column, arm in enumerate(found.arms):
        axis = _axis(found, arm)
        _classes(panels[0][column], found, arm, source, axis)
        _excess(panels[1][column], found, arm, source, axis)
        if found.backtracking:
            _backtracking(panels[2][column], found, arm, axis)
        for panel in panels[:, column]:
            panel.set_xlabel(_unit(found, arm), fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=7, frameon=False, ncols=min(8, max(1, len(labels))), loc="outside lower center"
    )
    figure.suptitle(
        f"{found.n_traces:,} traces; upper panels: those of {source}; dotted: where half of the last Δ is reached".replace(
            "$", r"\$"
        ),
        fontsize=9,
    )
    return figure


def picture(found: LogprobsResult) -> bytes:
    """The figure as PNG."""
    content = io.BytesIO()
    draw_log_probs(found).savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()


def _axis(found: LogprobsResult, arm: str) -> list[float]:
    """Place of base and of every checkpoint: their steps, or 1, 2, 3... where one is unknown."""
    row = next((row for row in found.learning if row.arm == arm), None)
    steps = row.steps if row is not None else range(1, len(found.arms[arm]) + 1)
    return [0.0, *map(float, steps)]


def _unit(found: LogprobsResult, arm: str) -> str:
    """What the axis of an arm counts, and its scale."""
    row = next((row for row in found.learning if row.arm == arm), None)
    unit = "step" if row is not None and row.spaced_by == "steps" else "checkpoint"
    return unit if row is None else f"{unit} (linear to {row.steps[0]:g}, then logarithmic)"


def _color(found: LogprobsResult, group: str) -> str:
    return _COLORS[found.classes.index(group) % len(_COLORS)]


def _classes(panel: "Axes", found: LogprobsResult, arm: str, source: str, axis: list[float]) -> None:
    """Mean Δ of each class at base (0) and every checkpoint, and the checkpoints between which half of the last one is reached."""
    halves = {row.group: row for row in found.learning if (row.arm, row.source) == (arm, source)}
    for group in found.classes:
        rows = found.find(source=source, by="class", group=group, metric="delta", reference="base")
        _curve(panel, found, arm, group, axis, {row.model: row.interval for row in rows})
        _half_step(panel, halves.get(group), _color(found, group))
    _finish(panel, axis, f"{arm}: Δ against {found.base}", "mean Δ log p (nats)")


def _excess(panel: "Axes", found: LogprobsResult, arm: str, source: str, axis: list[float]) -> None:
    """Class tokens minus matched controls."""
    for group in found.classes:
        rows = {row.model: row.excess for row in found.excess if (row.source, row.group) == (source, group)}
        _curve(panel, found, arm, group, axis, rows)
    _finish(panel, axis, f"{arm}: class − matched controls", "excess Δ log p (nats)")


def _curve(
    panel: "Axes", found: LogprobsResult, arm: str, group: str, axis: list[float], values: Mapping[str, Interval]
) -> None:
    """Values and intervals of the models of an arm from 0 at base on."""
    points = [values.get(model) for model in found.arms[arm]]
    if not any(points):
        return
    missing, color = Interval(float("nan"), float("nan"), float("nan"), 0), _color(found, group)
    rows = np.array([[0.0] * 3, *([p.value, p.low, p.high] for p in (point or missing for point in points))])
    panel.plot(axis, rows[:, 0], marker="o", markersize=3, linewidth=1.3, color=color, label=group)
    panel.fill_between(axis, rows[:, 1], rows[:, 2], color=color, alpha=0.15, linewidth=0)


def _half_step(panel: "Axes", row: LearningRow | None, color: str) -> None:
    if row is not None and row.half_step is not None:
        ends = [row.half_step.low, row.half_step.high]
        panel.plot(ends, [row.curve[-1] / 2] * 2, marker="|", markersize=6, linewidth=1, linestyle=":", color=color)


def _backtracking(panel: "Axes", found: LogprobsResult, arm: str, axis: list[float]) -> None:
    """Words per 1,000 generated tokens, and accuracy, of the evaluated models."""
    known = {row.model: row for row in found.backtracking}
    places = [
        (x, known[model]) for x, model in zip(axis, (found.base, *found.arms[arm]), strict=True) if model in known
    ]
    if places:
        x, rows = [place for place, _ in places], [row for _, row in places]
        words = np.array([[row.per_1k.value, row.per_1k.low, row.per_1k.high] for row in rows])
        apart = np.abs(words[:, 1:] - words[:, :1]).T
        panel.errorbar(x, words[:, 0], yerr=apart, marker="o", markersize=3.5, color="black")
        most = float(np.nanmax(words, initial=0.0))
        panel.set_ylim(0, 1.1 * most or 1.0)
        if not most:
            panel.set_yticks([0])
            panel.annotate("no such word", (0.5, 0.1), xycoords="axes fraction", ha="center", fontsize=8)
        beside = panel.twinx()
        beside.plot(x, [row.accuracy.value for row in rows], linestyle="--", linewidth=1, color="black")
        beside.set_ylim(0, 1)
        beside.set_ylabel("accuracy (dashed)", fontsize=8)
        beside.tick_params(labelsize=7)
    verdict = next((verdict for verdict in found.verdicts if verdict.arm == arm), None)
    _finish(panel, axis, f"{arm}: {verdict.label if verdict else 'not evaluated'}", "words per 1,000 tokens")


def _finish(panel: "Axes", axis: list[float], title: str, label: str) -> None:
    panel.axhline(0, color="#999999", linewidth=0.6)
    panel.set_xscale("symlog", linthresh=axis[1])  # straight between two checkpoints, as in `mechprobe.dynamics.order`
    panel.set_xlim(-0.1 * axis[1], 1.15 * axis[-1])
    panel.set_xticks(axis, [f"{step:g}" for step in axis], fontsize=7, rotation=45 if len(axis) > 6 else 0)
    panel.minorticks_off()
    panel.set_title(title.replace("$", r"\$"), fontsize=9)
    panel.set_ylabel(label, fontsize=8)
    panel.tick_params(axis="y", labelsize=7)
