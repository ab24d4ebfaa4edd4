"""The cost of the report, which needs neither torch nor the models."""

from mechprobe.files import read_json
from mechprobe.planning.rates import Rates
from mechprobe.planning.stage_cost import StageCost
from mechprobe.run_layout import CHAIN, RunLayout
from mechprobe.stage_folder import MANIFEST

FIGURES, _AXES = 17, 4
"""Figures of a report with all stages, and axes of a figure on average (ours); each is written in three forms."""
_VALUES, _ROWS = 3, 25
"""Bytes in memory for a byte of a result file: of values, and of the rows of side stages, which are objects and are read for a page and
for the timeline (ours)."""
_CONTEXTS = 13
"""Contexts of a feature that the explorer writes: five of highest activation, and up to eight random ones (ours)."""


def report_cost(
    rates: Rates,
    *,
    n_figures: int = FIGURES,
    n_features: int = 0,
    n_bytes: int = 0,
    row_bytes: int = 0,
    known: bool = True,
) -> StageCost:
    """A report of some figures, whose explorer shows ``n_features``, over files of ``n_bytes``, and of ``row_bytes`` of side stages."""
    units = rates.units
    figures = n_figures * (units["figure"] + (_AXES - 1) * units["chart"])
    explorer = n_features * _CONTEXTS * units["record"]
    held = rates.holds("page") + _VALUES * n_bytes + _ROWS * row_bytes
    read = n_bytes + row_bytes
    return StageCost(
        stage="report",
        flop=0,
        device_bytes=0 if rates.device == "cuda" else held,
        host_bytes=held,
        disk_bytes=read,
        seconds=rates.started("page") + figures + explorer + read * units["hashed"] if known else None,
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
    n_stages = sum(1 for path in layout.folder.glob(f"*/{MANIFEST}") if path.parent.name != "report")
    return report_cost(
        rates,
        n_figures=min(FIGURES, 2 * n_stages),
        n_features=n_features,
        n_bytes=sizes[True],
        row_bytes=sizes[False],
        known=known,
    )
