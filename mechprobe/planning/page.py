"""The cost of the report, which needs neither torch nor the models."""

from pathlib import Path

from mechprobe.files import read_json
from mechprobe.planning.rates import Rates
from mechprobe.planning.stage_cost import StageCost
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import MANIFEST

FIGURES, _AXES = 17, 4
"""Figures of a report with all stages, and axes of a figure on average (ours); each is written in three forms."""
_OBJECTS = 10
"""Bytes of results as Python objects and as pages, over those of their files (ours)."""
_CONTEXTS = 13
"""Contexts of a feature that the explorer writes: five of highest activation, and up to eight random ones (ours)."""


def report_cost(
    rates: Rates, *, n_figures: int = FIGURES, n_features: int = 0, n_bytes: int = 0, known: bool = True
) -> StageCost:
    """A report of some figures over result files of ``n_bytes``, whose explorer shows ``n_features``."""
    units = rates.units
    figures = n_figures * (units["figure"] + (_AXES - 1) * units["chart"])
    explorer = n_features * _CONTEXTS * units["record"]
    held = rates.holds("page") + _OBJECTS * n_bytes
    return StageCost(
        stage="report",
        flop=0,
        device_bytes=0 if rates.device == "cuda" else held,
        host_bytes=held,
        disk_bytes=n_bytes,
        seconds=rates.started("page") + figures + explorer + n_bytes * units["hashed"] if known else None,
        note=f"{n_figures} figures, pages of {n_features:,} features",
    )


def report_of(layout: RunLayout, rates: Rates, *, known: bool) -> StageCost:
    """The cost of the report of a run folder: its results are those that pages are made from, without stores and weights."""
    read = [
        path
        for path in layout.folder.glob("*/*")
        if path.suffix in (".json", ".jsonl", ".parquet") and path.is_file() and path.parent.name != "report"
    ]
    manifest = layout.contexts / MANIFEST
    n_features = int(read_json(manifest)["counts"]["features"]) if manifest.is_file() else 0
    figures = 2 * sum(1 for path in layout.folder.glob(f"*/{MANIFEST}") if Path(path).parent.name != "report")
    return report_cost(
        rates,
        n_figures=min(FIGURES, figures),
        n_features=n_features,
        n_bytes=sum(path.stat().st_size for path in read),
        known=known,
    )
