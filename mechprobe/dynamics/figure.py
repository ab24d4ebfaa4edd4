"""The figure of curves: scores with standard errors from base on, trough, and response length."""

import io
from collections.abc import Mapping, Sequence
from math import ceil
from textwrap import fill
from typing import TYPE_CHECKING

from mechprobe.dynamics.order import log_axis, steps_at
from mechprobe.dynamics.result import DipResult
from mechprobe.environment import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI, _WIDE, _TITLE = 160, 3, 46
_SCORE, _ENDED, _LENGTH, _BASE, _TROUGH = "#1f5fa8", "#c26a15", "#8a8a8a", "#444444", "#b3261e"
_UNITS = {"share": "score (share)", "percent": "score (%)", "score": "score"}


def draw_curves(curves: Mapping[str, DipResult], spaced_by: Mapping[str, str] | None = None) -> "Figure":
    """One panel per curve, at most three in a row; ``spaced_by`` names what the checkpoints of an arm are counted in.

    Shares have one y axis in all panels, and so have percentages. The legend stands below the panels.
    """
    require("matplotlib", "The figure of curves")
    from matplotlib.figure import Figure

    columns = min(_WIDE, len(curves))
    rows = ceil(len(curves) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (name, curve) in zip(panels, curves.items(), strict=False):
        unit = (spaced_by or {}).get(name.partition("/")[0], "steps")
        _draw(panel, curve, unit.removesuffix("s"))
        _limits(panel, curve, [each for each in curves.values() if each.unit == curve.unit])
        panel.set_title(_title(name, curve), fontsize=9)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    known = {
        label: handle for panel in figure.axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(known.values()), list(known), fontsize=8, frameon=False, ncols=2 * columns, loc="outside lower center"
    )
    return figure


def picture(curves: Mapping[str, DipResult], spaced_by: Mapping[str, str] | None = None) -> bytes:
    """The figure as PNG."""
    content = io.BytesIO()
    draw_curves(curves, spaced_by).savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()


def _title(name: str, curve: DipResult) -> str:
    """Name, label and n; the share of resampled curves that have the label where it is unstable."""
    size = "" if curve.n is None else f", n = {curve.n}"
    shaky = f" (unstable: {100 * curve.label_share:.0f} %)" if curve.unstable else ""
    lines = [fill(name, _TITLE, break_on_hyphens=False)] if name else []
    return "\n".join([*lines, fill(f"{curve.words}{shaky}{size}", _TITLE)]).replace("$", r"\$")


def _draw(panel: "Axes", curve: DipResult, counted: str) -> None:
    steps = [0.0, *curve.steps]
    base, error = curve.base_score, curve.errors[0]
    panel.axhspan(base - error, base + error, color=_BASE, alpha=0.12, linewidth=0)
    panel.axhline(base, color=_BASE, linewidth=1, linestyle="--", label="base ± SE")
    panel.errorbar(
        steps, [base, *curve.scores], yerr=curve.errors, color=_SCORE, marker="o", markersize=3.5, linewidth=1.4, label="score ± SE"
    )  # fmt: skip
    if curve.cut is not None:
        panel.plot(
            steps, curve.cut.ended_scores, color=_ENDED, linewidth=1, linestyle=":", label="score of ended responses"
        )
    if curve.dipped:
        panel.plot([curve.trough_step], [curve.trough_score], "v", color=_TROUGH, markersize=8, label="trough")
    if curve.length is not None:
        beside = panel.twinx()
        beside.plot(
            steps, curve.length.lengths, color=_LENGTH, linewidth=1, alpha=0.8, label="response tokens (right axis)"
        )
        beside.set_ylabel("response tokens", color=_LENGTH, fontsize=8)
        beside.tick_params(labelsize=7, colors=_LENGTH)
    _steps(panel, steps)
    panel.set_xlabel(f"{counted} (base at 0)", fontsize=8)
    panel.set_ylabel(_UNITS[curve.unit] + ("" if curve.higher_is_better else ", lower is better"), fontsize=8)
    panel.tick_params(axis="y", labelsize=7)


def _steps(panel: "Axes", steps: Sequence[float]) -> None:
    """The axis of `mechprobe.dynamics.order`: linear from base at 0 to the first checkpoint, and logarithmic after it."""
    first = steps[1]
    panel.set_xscale("function", functions=(lambda step: log_axis(step, first), lambda place: steps_at(place, first)))
    panel.set_xlim(-0.15 * first, steps[-1] * 1.08)
    panel.set_xticks(steps, [f"{step:g}" for step in steps], fontsize=7)
    panel.set_xticks([], minor=True)


def _limits(panel: "Axes", curve: DipResult, alike: Sequence[DipResult]) -> None:
    """One range for all shares, and for all percentages; scores with errors of their own have no common unit."""
    shown = alike if curve.unit != "score" else [curve]
    ends = [
        value + sign * error
        for each in shown
        for value, error in zip((each.base_score, *each.scores), each.errors, strict=True)
        for sign in (-1, 1)
    ]
    room = 0.04 * (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - room, max(ends) + room
    panel.set_ylim((low, high) if curve.higher_is_better else (high, low))
