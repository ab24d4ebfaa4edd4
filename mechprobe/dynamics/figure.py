"""The figure of curves: scores with standard errors on a logarithmic axis of steps, base, trough, and response length."""

import io
from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING

from mechprobe.dynamics.result import DipResult
from mechprobe.environment import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI, _WIDE = 160, 3
_SCORE, _ENDED, _LENGTH, _BASE, _TROUGH = "#1f5fa8", "#c26a15", "#8a8a8a", "#444444", "#b3261e"


def draw_curves(curves: Mapping[str, DipResult], spaced_by: Mapping[str, str] | None = None) -> "Figure":
    """One panel per curve, at most three in a row; ``spaced_by`` names what the checkpoints of an arm are counted in."""
    require("matplotlib", "The figure of curves")
    from matplotlib.figure import Figure

    columns = min(_WIDE, len(curves))
    rows = ceil(len(curves) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (name, curve) in zip(panels, curves.items(), strict=False):
        unit = (spaced_by or {}).get(name.partition("/")[0], "steps")
        _draw(panel, name, curve, unit.removesuffix("s"))
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    return figure


def picture(curves: Mapping[str, DipResult], spaced_by: Mapping[str, str] | None = None) -> bytes:
    """The figure as PNG."""
    content = io.BytesIO()
    draw_curves(curves, spaced_by).savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()


def _draw(panel: "Axes", name: str, curve: DipResult, counted: str) -> None:
    steps, unit = list(curve.steps), {"share": "score (share)", "percent": "score (%)", "score": "score"}[curve.unit]
    base, error = curve.base_score, curve.errors[0]
    panel.axhspan(base - error, base + error, color=_BASE, alpha=0.12, linewidth=0)
    panel.axhline(base, color=_BASE, linewidth=1, linestyle="--", label=f"base, n = {curve.n}" if curve.n else "base")
    panel.errorbar(
        steps,
        curve.scores,
        yerr=curve.errors[1:],
        color=_SCORE,
        marker="o",
        markersize=3.5,
        linewidth=1.4,
        label="score ± SE",
    )
    if curve.cut is not None:
        panel.plot(
            steps, curve.cut.ended_scores[1:], color=_ENDED, linewidth=1, linestyle=":", label="of ended responses"
        )
    if curve.dipped:
        panel.plot([curve.trough_step], [curve.trough_score], "v", color=_TROUGH, markersize=8, label="trough")
    if curve.length is not None:
        beside = panel.twinx()
        beside.plot(steps, curve.length.lengths[1:], color=_LENGTH, linewidth=1, alpha=0.8)
        beside.set_ylabel("response tokens", color=_LENGTH, fontsize=8)
        beside.tick_params(labelsize=7, colors=_LENGTH)
    panel.set_xscale("log")
    panel.set_xticks(steps, [f"{step:g}" for step in steps], fontsize=7)
    panel.minorticks_off()
    panel.set_xlabel(counted, fontsize=8)
    panel.set_ylabel(unit if curve.higher_is_better else f"{unit}, lower is better", fontsize=8)
    if not curve.higher_is_better:
        panel.invert_yaxis()
    panel.tick_params(axis="y", labelsize=7)
    panel.set_title(f"{name}: {curve.words}".removeprefix(": ").replace("$", r"\$"), fontsize=9)
    panel.legend(fontsize=6, frameon=False)
