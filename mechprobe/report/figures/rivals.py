"""Figures of the rivals: the selected set against every rival and control, and the share of the ceiling by the size of a set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mechprobe.formatting import edit_title, number
from mechprobe.report.figures.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    error_bars,
    house_style,
    labels,
    new_figure,
    title_of,
)
from mechprobe.types import POOLED

_CONTROLS = {
    "random_size": "random features",
    "random": "random sets, matched",
    "rescaled": "random sets at the set's norm",
    "shuffled": "equal norm, other decoders",
    "shifted": "equal norm, other shifts",
}
"""Set kind → label of its row."""
_HANDLES = (
    ("D", BLUE, "selected features (95 % interval)"),
    ("o", ORANGE, "rival, by rank"),
    ("s", PURPLE, "complement of the set"),
    (".", GREY, "controls, one point a draw"),
)


def rivals_figure(results: Mapping[str, Any]) -> Figure:
    """Pooled effect in the claimed direction of the transplanted set, its rivals and its controls: one panel per host."""
    found = results["comparisons"]
    rows = [_rows(comparison, results) for comparison in found]
    with house_style():
        figure = new_figure(5.6 * len(found), 0.24 * max(map(len, rows)) + 1.5)
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, comparison, own in zip(panels, found, rows, strict=True):
            _panel(axes, comparison, own, results)
        shown = [Line2D([], [], linestyle="none", marker=m, color=c, label=text) for m, c, text in _HANDLES]
        shown.append(Line2D([], [], color=INK, linewidth=2.2, label="ceiling: whole residual"))
        figure.legend(handles=shown, loc="outside lower center", ncols=3)
        return figure


def _rows(comparison: Mapping[str, Any], results: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """``(kind, label, what is drawn)`` from top to bottom."""
    features = f"{comparison['features']} (rank ≤ {comparison['rank']})"
    rivals = sorted(comparison["rivals"], key=lambda one: (one["rank"] is None, one["rank"] or 0))
    kinds = {c["name"]: c["set_kind"] for c in results["conditions"]}
    found = [("set", features, comparison["effect"])]
    for rival in rivals:
        dose = "" if rival["dose"] is None else f" ×{rival['dose']:g}"
        name = rival["name"].replace(", best dose", "") + dose
        rank = "" if rival["rank"] is None or "rank" in name else f" (rank {rival['rank']})"
        broken = ", damage" if rival.get("damages") else ""
        found.append((kinds[rival["condition"]], name + rank + broken, rival["effect"]))
    for kind, label in _CONTROLS.items():
        for n_features, draws in _draws(comparison, results, kind).items():
            size = f", {n_features} of each" if kind == "random_size" else ""
            found.append(("control", f"{label}{size} ({len(draws)})", draws))
    return found


def _draws(comparison: Mapping[str, Any], results: Mapping[str, Any], kind: str) -> dict[int, list[float]]:
    """Number of features → effects of the draws of one kind of control, by size."""
    sign, found = _sign(comparison, results), dict[int, list[float]]()
    for c in results["conditions"]:
        if (c["set_kind"], c["model"], c["edit"]) == (kind, comparison["model"], comparison["edit"]):
            found.setdefault(c["n_features"], []).append(sign * number(c["accuracy_delta"][POOLED][0]))
    return dict(sorted(found.items()))


def _sign(comparison: Mapping[str, Any], results: Mapping[str, Any]) -> float:
    return 1.0 if comparison["model"] == results["pair"][0] else -1.0


def _panel(
    axes: Axes, comparison: Mapping[str, Any], rows: Sequence[tuple[str, str, Any]], results: Mapping[str, Any]
) -> None:
    styles = {"set": ("D", BLUE, 6.5), "rival": ("o", ORANGE, 5), "complement": ("s", PURPLE, 5)}
    rng = np.random.default_rng(0)
    for place, (kind, _, value) in enumerate(rows):
        if kind == "control":
            jitter = place + rng.uniform(-0.22, 0.22, len(value))
            axes.plot(100 * np.array(value), jitter, linestyle="none", marker=".", markersize=4, color=GREY, alpha=0.6)
            continue
        mark, color, size = styles[kind]
        middle, spans = error_bars([value])
        axes.errorbar(middle, [place], xerr=spans, fmt=mark, color=color, markersize=size, capsize=2.5, linewidth=1.3)
    ceiling = next(
        c for c in results["conditions"] if (c["set_kind"], c["model"]) == ("ceiling", comparison["model"])
    )["accuracy_delta"][POOLED][0]  # fmt: skip
    axes.axvline(100 * _sign(comparison, results) * number(ceiling), color=INK, linewidth=2.2)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_yticks(range(len(rows)), labels([label for _, label, _ in rows], width=54, lines=1), fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x")
    gain = "gain" if _sign(comparison, results) > 0 else "loss"
    axes.set_xlabel(f"{gain} of pooled accuracy (points)")
    condition = next(c for c in results["conditions"] if c["set_kind"] == "selected" and c["model"] == comparison["model"]
                     and c["edit"] == comparison["edit"])  # fmt: skip
    axes.set_title(title_of(edit_title(condition)))


def faithfulness_figure(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of the pooled ceiling by the size of a set, one panel per host; the legend has the areas under the curves."""
    hosts = list(dict.fromkeys(curve["model"] for curve in curves))
    kinds = list(dict.fromkeys(curve["kind"] for curve in curves))
    colors = dict(zip(kinds, (BLUE, ORANGE, PURPLE, GREY), strict=False))
    with house_style():
        figure = new_figure(4.6 * len(hosts), 3.9)
        panels = figure.subplots(1, len(hosts), sharey=True, squeeze=False)[0]
        measured = sorted({size for curve in curves for size, _ in curve["points"]})
        for axes, host in zip(panels, hosts, strict=True):
            for curve in (c for c in curves if c["model"] == host):
                sizes, shares = zip(*curve["points"], strict=True)
                area = (
                    "" if curve["area"] is None else f" (area {round(curve['area'], 2) + 0.0:.2f})"
                )  # 0 keeps no minus sign
                label, color = f"{curve['kind']}{area}", colors[curve["kind"]]
                axes.plot(sizes, 100 * np.array(shares), "o-", color=color, markersize=4, label=label)
            axes.set_xscale("log")
            axes.set_xticks(measured, [str(size) for size in measured])
            axes.minorticks_off()
            axes.axhline(0, color=INK, linewidth=0.9)
            axes.axhline(100, color=INK, linewidth=0.9, linestyle=":")
            axes.set_title(title_of(f"transplants into {host}"))
            axes.set_xlabel("features or directions")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8)
        panels[0].set_ylabel("share of the ceiling (%)")
        return figure
