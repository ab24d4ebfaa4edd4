"""Write the explorer: its page, its scripts and style, and its data."""

from collections.abc import Iterator, Mapping
from importlib.resources import files as package_files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mechprobe.features.contexts.files import GROUP_FEATURES
from mechprobe.files import write_text
from mechprobe.formatting import edit_title, interval
from mechprobe.report.explorer.columns import RANKING_NAMES, FeatureColumns, feature_columns
from mechprobe.report.explorer.courses import feature_courses
from mechprobe.report.explorer.script_data import call, packed
from mechprobe.report.explorer.shards import TokenIndex, shards
from mechprobe.report.pages.examples import current_labels
from mechprobe.report.pages.templates import environment, navigation
from mechprobe.report.pages.theme import theme_style
from mechprobe.report.result import JsonObject
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.features import ordered_classes
from mechprobe.stage_folder import MANIFEST, read_manifest, recorded_hash
from mechprobe.types import POOLED

PAGE = "index.html"
SCRIPTS = (
    "data.js",
    "text.js",
    "grid.js",
    "plots.js",
    "scatters.js",
    "contexts.js",
    "charts.js",
    "feature.js",
    "markdown.js",
    "filters.js",
    "controls.js",
    "app.js",
)
STYLE = "explorer.css"
TABLE_DATA = "data/table.js"
_SHOWN_SETS = ("selected", "size", "dose")
"""Sets of an intervention that consist of the first selected features."""


def write_explorer(files: RunFiles, folder: Path, links: Mapping[str, bool] = MappingProxyType({})) -> list[str]:
    """Write the explorer of a run into ``folder`` and return its files; without a feature table, write nothing.

    ``links`` says which further pages the report beside it has.

    Raises:
        ArtifactError: A result file cannot be read.
    """
    if not has_explorer(files):
        return []
    found, contexts, index = feature_columns(files), current_contexts(files), TokenIndex()
    courses = feature_courses(files, found.features)
    written = []

    def write(name: str, text: str) -> None:
        write_text(folder / name, text)
        written.append(name)

    for number, shard in enumerate(shards(found.features, found.details, contexts, courses, index)):
        write(f"data/shard_{number}.js", call("receiveShard", number, shard))
    about = _about(files, found) | {"has_contexts": contexts is not None, "arms": [course.arm for course in courses]}
    write(TABLE_DATA, call("receiveTable", about | {"tokens": index.to_dict()}))
    assets = package_files("mechprobe.report.explorer") / "assets"
    for name in SCRIPTS:
        write(name, (assets / name).read_text(encoding="utf-8"))
    write(STYLE, theme_style() + (assets / STYLE).read_text(encoding="utf-8"))
    page = environment().get_template("explorer.html.j2")
    pages = navigation({**links, "explorer": False})
    write(
        PAGE,
        page.render(name=files.name, trusted=files.trusted, scripts=(*SCRIPTS, TABLE_DATA), style=STYLE, pages=pages),
    )
    return written


def has_explorer(files: RunFiles) -> bool:
    """Whether a run has a feature table, which the explorer needs."""
    return files.features is not None and (files.layout.features / "table.parquet").is_file()


def current_contexts(files: RunFiles) -> Path | None:
    """The folder ``contexts``, if it was made from the features that the run holds now."""
    folder, features = files.layout.contexts, files.layout.features
    if not (folder / MANIFEST).is_file() or not (features / MANIFEST).is_file():
        return None
    made_from = read_manifest(folder)["inputs"].get("features")
    return folder if made_from == recorded_hash(read_manifest(features)) else None


def _about(files: RunFiles, found: FeatureColumns) -> JsonObject:
    """Everything about the live features together, and the columns of the table."""
    summary, selection = files.features or {}, files.selection or {}
    classes = [name for name in ordered_classes(summary["class_counts"], summary["models"]) if name != "dead"]
    rank = {feature: place for place, feature in enumerate(files.selected)}
    labels, n_stale = current_labels(files)
    tasks = list(dict.fromkeys(name.partition(".")[2] for name in found.details if "." in name))
    return {
        "run": files.name,
        "trusted": files.trusted,
        "models": list(summary["models"]),
        "base": summary["base"],
        "readout": summary["readout"],
        "n_features": summary["n_features"],
        "n_rows": summary["n_rows"],
        "shard_features": GROUP_FEATURES,
        "classes": classes,
        "tasks": tasks,
        "rankings": {name: RANKING_NAMES[name] for name in RANKING_NAMES if any(f"{name}.{t}" in found.details for t in tasks)},
        "selection": {"rule": selection.get("rule", ""), "ranking": selection.get("ranking", ""), "n": len(rank)},
        "labeler": files.labels.labeler if files.labels else "",
        "n_stale_labels": n_stale,
        "labels": {str(feature): label for feature, label in labels.items()},
        "edits": list(_edits(files.interventions or {})),
        "edited": [int(feature) for feature in (files.interventions or {}).get("features", [])],
        "columns": found.columns,
        "details": list(found.details),
        "feature": packed(found.features, "<u4"),
        "class": packed([classes.index(name) for name in found.frame["class"]], "u1"),
        "rank": packed([rank.get(feature, -1) for feature in found.features.tolist()], "<i4"),
        "values": {key: packed(values, "<f4") for key, values in found.values.items()},
    }  # fmt: skip


def _edits(interventions: JsonObject) -> Iterator[dict[str, Any]]:
    """The conditions that edit the first ``size`` selected features, with their changes of accuracy in points."""
    for condition in interventions.get("conditions", ()):
        if condition.get("set_kind") in _SHOWN_SETS and condition.get("n_features"):
            delta = condition["accuracy_delta"]
            yield {
                "title": edit_title(condition),
                "set": condition["features"],
                "size": condition["n_features"],
                "pooled": interval(delta.get(POOLED), signed=True),
                "n": _n(delta.get(POOLED)),
                "tasks": {task: interval(delta.get(task), signed=True) for task in interventions["tasks"]},
            }


def _n(item: Any) -> int | None:
    """Samples behind a ``[value, low, high, n]``."""
    value = item[3] if item and len(item) > 3 else None
    return int(value) if value is not None and np.isfinite(value) else None
