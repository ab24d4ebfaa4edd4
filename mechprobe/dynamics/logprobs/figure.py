"""The figure of a stage: Δ of the token classes over training, their excess over matched controls, and backtracking, by arm."""

import io
from typing import TYPE_CHECKING

from mechprobe.dynamics.logprobs.result import LearningRow, LogprobsResult
from mechprobe.environment import require

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
    panels = figure.subplots(rows, len(found.arms), squeeze=False, sharey="row")
    for column, arm in enumerate(found.arms):
        axis = _axis(found, arm)
        _classes(panels[0][column], found, arm, source, axis)
        _excess(panels[1][column], found, arm, source, axis)
        if found.backtracking:
            _backtracking(panels[2][column], found, arm, axis)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=7, frameon=False, ncols=min(8, max(1, len(labels))), loc="outside lower center"
    )
    figure.suptitle(f"{found.n_traces:,} traces; upper panels: those of {source}".replace("$", r"\$"), fontsize=9)
    return figure


def picture(found: LogprobsResult) -> bytes:
    """The figure as PNG."""
    content = io.BytesIO()
    draw_log_probs(found).savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()


def _axis(found: LogprobsResult, arm: str) -> list[float]:
    """Place of base and of every checkpoint: their steps, or 1, 2, 3... where one is unknown."""
    row = next((row for row in found.learning if row.arm == arm), None)
    return [0.0, *(row.steps if row is not None else range(1, len(found.arms[arm]) + 1))]


def _color(found: LogprobsResult, group: str) -> str:
    return _COLORS[found.classes.index(group) % len(_COLORS)]


def _classes(panel: "Axes", found: LogprobsResult, arm: str, source: str, axis: list[float]) -> None:
    """Mean Δ of each class at base (0) and every checkpoint, and its half step."""
    halves = {row.group: row for row in found.learning if (row.arm, row.source) == (arm, source)}
    for group in found.classes:
        rows = {
            r.model: r for r in found.find(source=source, by="class", group=group, metric="delta", reference="base")
        }
        points = [rows.get(model) for model in found.arms[arm]]
        if not any(points):
            continue
        values = [0.0, *(row.value if row else float("nan") for row in points)]
        low, high = (
            [0.0, *(r.low if r else float("nan") for r in points)],
            [0.0, *(r.high if r else float("nan") for r in points)],
        )
        panel.plot(axis, values, marker="o", markersize=3, linewidth=1.3, color=_color(found, group), label=group)
        panel.fill_between(axis, low, high, color=_color(found, group), alpha=0.15, linewidth=0)
        _half_step(panel, halves.get(group), _color(found, group))
    _finish(panel, axis, f"{arm}: Δ against {found.base}", "mean Δ log p (nats)")


def _half_step(panel: "Axes", row: LearningRow | None, color: str) -> None:
    if row is not None and row.half_step is not None:
        panel.plot(
            [row.half_step.value], [row.curve[-1] / 2], marker="D", markersize=6, markerfacecolor="none", color=color
        )


def _excess(panel: "Axes", found: LogprobsResult, arm: str, source: str, axis: list[float]) -> None:
    """Class tokens minus matched controls."""
    for group in found.classes:
        rows = {row.model: row.excess for row in found.excess if (row.source, row.group) == (source, group)}
        points = [rows.get(model) for model in found.arms[arm]]
        if not any(points):
            continue
        nan = float("nan")
        panel.plot(
            axis, [0.0, *(p.value if p else nan for p in points)], marker="o", markersize=3, color=_color(found, group)
        )
        low, high = [0.0, *(p.low if p else nan for p in points)], [0.0, *(p.high if p else nan for p in points)]
        panel.fill_between(axis, low, high, color=_color(found, group), alpha=0.15, linewidth=0)
    _finish(panel, axis, f"{arm}: class − matched controls", "excess Δ log p (nats)")


def _backtracking(panel: "Axes", found: LogprobsResult, arm: str, axis: list[float]) -> None:
    """Words per 1,000 generated tokens, and accuracy, of the evaluated models."""
    known = {row.model: row for row in found.backtracking}
    places = [
        (x, known[model]) for x, model in zip(axis, (found.base, *found.arms[arm]), strict=True) if model in known
    ]
    if places:
        x, rows = [place for place, _ in places], [row for _, row in places]
        low, high = (
            [max(0.0, r.per_1k.value - r.per_1k.low) for r in rows],
            [max(0.0, r.per_1k.high - r.per_1k.value) for r in rows],
        )
        panel.errorbar(x, [r.per_1k.value for r in rows], yerr=[low, high], marker="o", markersize=3.5, color="#b3261e")
        beside = panel.twinx()
        beside.plot(x, [row.accuracy.value for row in rows], linestyle="--", linewidth=1, color="#444444")
        beside.set_ylim(0, 1)
        beside.set_ylabel("accuracy (dashed)", fontsize=8)
        beside.tick_params(labelsize=7)
    verdict = next((verdict for verdict in found.verdicts if verdict.arm == arm), None)
    _finish(panel, axis, f"{arm}: {verdict.label if verdict else 'not evaluated'}", "words per 1,000 tokens")


def _finish(panel: "Axes", axis: list[float], title: str, label: str) -> None:
    panel.axhline(0, color="#999999", linewidth=0.6)
    panel.set_xscale("symlog", linthresh=max(1.0, axis[1] if len(axis) > 1 else 1.0))
    panel.set_xticks(axis, [f"{step:g}" for step in axis], fontsize=7, rotation=45 if len(axis) > 6 else 0)
    panel.minorticks_off()
    panel.set_title(title.replace("$", r"\$"), fontsize=9)
    panel.set_ylabel(label, fontsize=8)
    panel.set_xlabel("step", fontsize=8)
    panel.tick_params(axis="y", labelsize=7)
