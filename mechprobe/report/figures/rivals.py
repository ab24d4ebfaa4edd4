"""Figures of the rivals: the selected set against every rival and control, and the share of the ceiling by the size of a set."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from mechprobe.formatting import edit_title, number
from mechprobe.report.figures.style import (
    BLUE,
    GREY,
    INK,
    LIGHT,
    ORANGE,
    PAPER,
    PURPLE,
    dots,
    error_bars,
    house_style,
    labels,
    new_figure,
    title_of,
)
from mechprobe.report.figures.told import tell
from mechprobe.types import POOLED

_CONTROLS = {
    "random": "random sets, matched",
    "rescaled": "random sets at the set's norm",
    "random_size": "random features",
    "shuffled": "equal norm, other decoders",
    "shifted": "equal norm, other shifts",
}
"""Set kind → label of its row."""


class _Kind(NamedTuple):
    """A block of rows: its heading, which also names its series, and the look of its marks."""

    title: str
    mark: str
    color: str
    size: float | int


_KINDS = {
    "set": _Kind("selected features", "D", BLUE, 8),
    "rival": _Kind("rivals, by rank", "o", ORANGE, 5.5),
    "complement": _Kind("complements of the set", "s", PURPLE, 5.5),
    "control": _Kind("controls, one point a draw", ".", GREY, 4.5),
}
_HEADING = 1.0
"""Rows that a heading takes."""


class _Row(NamedTuple):
    """One row of a panel: its kind, its label, what a hover calls it, and its cells ``[value, low, high, n]``, one a draw."""

    kind: str
    label: str
    name: str
    cells: list[list[Any]]
    damages: bool = False
    main: bool = False


def rivals_figure(results: Mapping[str, Any]) -> Figure:
    """Pooled effect in the claimed direction of the transplanted set, its rivals and its controls: one panel per host.

    The panels share their rows. The blue strip is the interval of the selected set, and the thick line is the ceiling.
    """
    found = results["comparisons"]
    rows = [_rows(comparison, results) for comparison in found]
    places = _places([row for own in rows for row in own])
    height = max(place for place in places.values()) + 1
    with house_style():
        figure = new_figure(3.4 + 2.05 * len(found), 0.185 * height + 1.0)
        panels = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
        for axes, comparison, own in zip(panels, found, rows, strict=True):
            _panel(axes, comparison, own, places, results)
        panels[0].set_ylim(height - 0.3, -0.7)
        _name_rows(panels[0], places)
        return figure


def _rows(comparison: Mapping[str, Any], results: Mapping[str, Any]) -> list[_Row]:
    """The rows of one host: the set, rivals by rank, complements, controls."""
    n = _n_samples(results)
    kinds = {c["name"]: c["set_kind"] for c in results["conditions"]}
    own = f"{comparison['features']} (rank ≤ {comparison['rank']})"
    found = [_Row("set", own, own, [[*comparison["effect"][:3], n]], main=True)]
    by_rank = sorted(comparison["rivals"], key=lambda one: (one["rank"] is None, one["rank"] or 0))
    for rival in by_rank:
        name = rival["name"].replace(", best dose", "")
        rank = "" if rival["rank"] is None or "rank" in name else f" (rank {rival['rank']})"
        dose = "" if rival["dose"] is None else f", dose ×{rival['dose']:g}"
        broken = ", damage" if rival.get("damages") else ""
        row = _Row(
            kinds[rival["condition"]], name + rank, name + rank + dose + broken, [[*rival["effect"][:3], n]],
            damages=bool(broken), main=rival["name"] == comparison.get("best"),
        )  # fmt: skip
        found.append(row)
    for kind, label in _CONTROLS.items():
        if draws := _draws(comparison, results, kind):
            found.append(
                _Row(
                    "control", label, f"{label}, one of {len(draws)} draws", [[value, None, None, n] for value in draws]
                )
            )
    return sorted(found, key=lambda row: list(_KINDS).index(row.kind))


def _draws(comparison: Mapping[str, Any], results: Mapping[str, Any], kind: str) -> list[float]:
    """Effects of the draws of one kind of control, of every size."""
    sign = _sign(comparison, results)
    return [
        sign * number(c["accuracy_delta"][POOLED][0])
        for c in results["conditions"]
        if (c["set_kind"], c["model"], c["edit"]) == (kind, comparison["model"], comparison["edit"])
    ]


def _n_samples(results: Mapping[str, Any]) -> Any:
    """Number of samples of the pooled row; None where the results do not have it."""
    cells = (c["accuracy_delta"][POOLED] for c in results["conditions"])
    return next((cell[3] for cell in cells if len(cell) > 3), None)


def _sign(comparison: Mapping[str, Any], results: Mapping[str, Any]) -> float:
    return 1.0 if comparison["model"] == results["pair"][0] else -1.0


def _places(rows: Sequence[_Row]) -> dict[tuple[str, str], float]:
    """Kind and label of a row → its place from the top; every kind but the set begins with the room of a heading."""
    found, place = dict[tuple[str, str], float](), 0.0
    for kind in _KINDS:
        own = list(dict.fromkeys(row.label for row in rows if row.kind == kind))
        place += (_HEADING + (0.35 if place else 0)) if own else 0
        for label in own:
            found[kind, label] = place
            place += 1
    return found


def _name_rows(axes: Axes, places: Mapping[tuple[str, str], float]) -> None:
    """Labels of the rows, and the heading of every kind with the mark of its rows."""
    axes.set_yticks(list(places.values()), labels([label for _, label in places], width=50, lines=1), fontsize=8.5)
    for name, kind in _KINDS.items():
        own = [place for (which, _), place in places.items() if which == name]
        if own:
            spot = {"xy": (0, own[0] - _HEADING), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(kind.title, **spot, xytext=(-15, 0), ha="right", va="center", fontsize=8.5, fontweight="bold")
            across = axes.get_yaxis_transform() + ScaledTranslation(-8 / 72, 0, axes.figure.dpi_scale_trans)
            axes.plot(
                [0], [own[0] - _HEADING], transform=across, clip_on=False, marker=kind.mark, color=kind.color,
                markersize=1.6 * kind.size if name == "control" else 6,
            )  # fmt: skip


def _panel(
    axes: Axes,
    comparison: Mapping[str, Any],
    rows: Sequence[_Row],
    places: Mapping[tuple[str, str], float],
    results: Mapping[str, Any],
) -> None:
    low, high = (100 * number(end) for end in comparison["effect"][1:3])
    strip = axes.axvspan(low, high, color=BLUE, alpha=0.11, linewidth=0, zorder=0)
    tell(axes, _KINDS["set"].title, strip)
    rng = np.random.default_rng(0)
    for row in rows:
        _draw_row(axes, row, places[row.kind, row.label], rng)
    _draw_ceiling(axes, comparison, results)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    gain = "gain" if _sign(comparison, results) > 0 else "loss"
    axes.set_xlabel(f"pooled {gain} (points)")
    condition = next(c for c in results["conditions"] if c["set_kind"] == "selected" and c["model"] == comparison["model"]
                     and c["edit"] == comparison["edit"])  # fmt: skip
    axes.set_title(title_of(edit_title(condition)), pad=16)


def _draw_row(axes: Axes, row: _Row, place: float, rng: np.random.Generator) -> None:
    kind = _KINDS[row.kind]
    values, spans = error_bars(row.cells)
    if row.kind == "control":
        drawn: Any = dots(axes, values, place + rng.uniform(-0.25, 0.25, len(values)), size=2.6)
        # The largest draw decides, and may lie on the line of the ceiling.
        most = values[np.isfinite(values)].max(initial=-np.inf)
        ring = {"markersize": 5.5, "markerfacecolor": PAPER, "markeredgecolor": kind.color, "zorder": 3}
        drawn = [
            drawn,
            *axes.plot([most] if np.isfinite(most) else [], [place] if np.isfinite(most) else [], "o", **ring),
        ]
        y = np.full(len(values), place)  # a hand cannot tell the jitter of points
    else:
        y = np.array([place])
        axes.axhline(place, color=LIGHT, linewidth=0.6, linestyle=(0, (1, 2.5)), zorder=0.5)
        strong = row.kind == "set"
        face = PAPER if row.damages else kind.color
        drawn = axes.errorbar(
            values, y, xerr=spans, fmt=kind.mark, color=kind.color, markerfacecolor=face, markersize=kind.size,
            capsize=0, linewidth=2.6 if strong else 1.5, zorder=5 if strong else 4,
        )  # fmt: skip
        if row.damages:
            note = axes.annotate(
                "damage", (values[0], place), xytext=(0, 5), textcoords="offset points", ha="center", va="bottom",
                fontsize=7.5,
            )  # fmt: skip
            drawn = [drawn, note]
    names = [row.name] * len(values)
    at = zip(values, y, strict=True)
    tell(axes, kind.title, drawn, at, row.cells, names=names, unit="points", main=row.main)


def _draw_ceiling(axes: Axes, comparison: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """The effect of the whole residual as a line, named above the panel."""
    condition = next(
        c for c in results["conditions"] if (c["set_kind"], c["model"]) == ("ceiling", comparison["model"])
    )
    ceiling = _sign(comparison, results) * number(condition["accuracy_delta"][POOLED][0])
    axes.axvline(100 * ceiling, color=INK, linewidth=2, zorder=2)
    axes.annotate(
        "ceiling", (100 * ceiling, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
        ha="center", va="bottom", fontsize=8.5,
    )  # fmt: skip
    name = ["ceiling: whole residual"]
    cell = [ceiling, None, None, _n_samples(results)]
    tell(axes, "", (), [(100 * ceiling, -0.5)], [cell], names=name, unit="points", main=True)


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
                drawn = axes.plot(sizes, 100 * np.array(shares), "o-", color=color, markersize=4, label=label)
                places, cells = zip(sizes, 100 * np.array(shares), strict=True), [[share] for share in shares]
                tell(axes, curve["kind"], drawn, places, cells, names=[f"first {size:,}" for size in sizes], at=sizes)
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
