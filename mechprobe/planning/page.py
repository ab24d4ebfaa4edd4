"""The cost of the report, which needs neither torch nor the models."""

from mechprobe.files import read_json
from mechprobe.planning.rates import Rates
from mechprobe.planning.stage_cost import StageCost
from mechprobe.run_layout import CHAIN, RunLayout
from mechprobe.stage_folder import MANIFEST, read_manifest

FIGURES, _AXES = 17, 48
"""Figures of a report with all stages, and their axes."""
_DRAWN = {
    "evals": (1, 1), "localize": (1, 1), "crosscoder": (1, 3), "features": (1, 2), "interventions": (3, 7),
    "drift": (1, 2), "probe": (2, 12), "weights": (2, 4), "emergence": (1, 3),
}  # fmt: skip
"""Figures of the results of a stage folder, and their axes in a run of one task (ours)."""
_LEAST_LINES = 2
"""Lines of a training log that make a curve."""
_OVER_STEPS = ("dynamics", "sweep", "logprobs")
_STEP = "@step_"
_MARKS = 1.7
"""How many times as long a figure takes as one of the calibration, which has fewer marks and no text alternative: 1.3 to 1.9 (ours)."""
_VALUES, _ROWS = 3, 25
"""Bytes in memory for a byte of a result file: of values, and of the rows of side stages, which are objects and are read for a page and
for the timeline (ours)."""
_ROW_BYTES = 600
"""Bytes of the rows of side stages that take as long to resample and to list as a response takes to be judged (ours)."""
_WRITTEN = 0.8
"""Time that the explorer takes to write a feature, as a share of that of judging a response (ours)."""


def report_cost(
    rates: Rates,
    *,
    figures: tuple[int, int] = (FIGURES, _AXES),
    n_features: int = 0,
    n_bytes: int = 0,
    row_bytes: int = 0,
    known: bool = True,
) -> StageCost:
    """A report of figures, given as their number and that of their axes, whose explorer shows ``n_features``.

    Its results are files of ``n_bytes``, and of ``row_bytes`` of side stages.
    """
    units, (n_figures, n_axes) = rates.units, figures
    drawing = _MARKS * (n_figures * units["figure"] + (n_axes - n_figures) * units["chart"])
    explorer = n_features * _WRITTEN * units["record"]
    timeline = row_bytes / _ROW_BYTES * units["record"]
    held = rates.holds("page") + _VALUES * n_bytes + _ROWS * row_bytes
    read = n_bytes + row_bytes
    return StageCost(
        stage="report",
        flop=0,
        device_bytes=0 if rates.device == "cuda" else held,
        host_bytes=held,
        disk_bytes=read,
        seconds=rates.started("page") + drawing + explorer + timeline + read * units["hashed"] if known else None,
        note=f"{n_figures} figures, pages of {n_features:,} features",
    )


def report_of(layout: RunLayout, rates: Rates, *, known: bool) -> StageCost:
    """The cost of the report of a run folder: its results are those that pages are made from, without stores and weights."""
    chain = {place.folder for place in CHAIN} | {"contexts", "examples"}
    sizes = {True: 0, False: 0}
    for path in layout.folder.glob("*/*"):
        if path.suffix in (".json", ".jsonl", ".parquet") and path.is_file() and path.parent.name != "report":
            sizes[path.parent.name in chain] += path.stat().st_size
    manifest = layout.contexts / MANIFEST
    n_features = int(read_json(manifest)["counts"]["features"]) if manifest.is_file() else 0
    return report_cost(
        rates,
        figures=_figures_of(layout),
        n_features=n_features,
        n_bytes=sizes[True],
        row_bytes=sizes[False],
        known=known,
    )


def _figures_of(layout: RunLayout) -> tuple[int, int]:
    """Figures of the finished stages of a run, and their axes."""
    found = {name: read_manifest(getattr(layout, name)) for name in (*_DRAWN, *_OVER_STEPS) if _is_made(layout, name)}
    log = layout.training_log
    if not log.is_file() or len(log.read_text(encoding="utf-8").splitlines()) < _LEAST_LINES:
        found.pop("crosscoder", None)
    drawn = [_DRAWN[name] for name in found if name in _DRAWN]
    if "interventions" in found:
        settings, tasks = found["interventions"]["config"], found["interventions"]["counts"]["samples"]
        drawn += [(1, 1)] if settings.get("doses") else []
        drawn += [(2, 4)] if settings.get("sizes") else []  # the share of the ceiling, and faithfulness
        drawn += [(0, len(tasks) - 1)]  # ceilings have axes for each task
    models = (
        name for manifest in found.values() for name in (*manifest["models"], *(manifest["config"].get("models") or ()))
    )
    if "emergence" in found or any(_STEP in name for name in models):
        drawn.append((2, 7))  # the timeline, and the order of changes
    return sum(n for n, _ in drawn), sum(n for _, n in drawn)


def _is_made(layout: RunLayout, name: str) -> bool:
    return (getattr(layout, name) / MANIFEST).is_file()
