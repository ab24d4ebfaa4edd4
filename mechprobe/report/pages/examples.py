"""One page of features: their contexts, the tokens they promote, their labels. Every text on it is escaped."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from mechprobe.features.examples.labels import entry_digest
from mechprobe.report.run_files import RunFiles
from mechprobe.report.tables import sections as tables

TEMPLATE = "examples.html.j2"
_SHADES = 5
"""Steps of the background, so that a page needs a class for each and no style for every token."""


def examples_content(files: RunFiles) -> dict[str, Any] | None:
    """What the page shows, as plain values; None where the run has no examples."""
    if not files.examples:
        return None
    selected = [int(feature) for feature in (files.selection or {}).get("features", [])]
    order = [feature for feature in selected if feature in files.examples]
    order += [feature for feature in files.examples if feature not in selected]
    labels, labeler, n_stale = _labels(files)
    rows = {row["feature"]: row for row in tables.feature_rows(order, files.examples, files.features)}
    return {
        "name": str(files.run.get("name") or files.run_dir.name),
        "models": files.models,
        "tuned": [name for name in files.models if name != files.base],
        "base": files.base,
        "trusted": bool(files.quality and files.quality["trusted"]),
        "readout": (files.features or {}).get("readout", "–"),
        "labeler": labeler,
        "n_stale": n_stale,
        "features": [
            {
                **_entry(files.examples[feature], files.models),
                **rows[feature],
                "selected": feature in selected,
                "label": labels.get(feature, ""),
            }
            for feature in order
        ],
    }


def examples_page(content: Mapping[str, Any], environment: Environment) -> str:
    """The page as self-contained HTML: no script, nothing fetched."""
    return environment.get_template(TEMPLATE).render(content, n_shades=_SHADES)


def _labels(files: RunFiles) -> tuple[dict[int, str], str, int]:
    """Labels of the examples as they are now, the labeler's name, and how many labels are of other examples."""
    if files.labels is None:
        return {}, "", 0
    found = files.labels
    current = {
        feature: label
        for feature, label in found.labels.items()
        if feature in files.examples and entry_digest(files.examples[feature]) == found.examples[feature]
    }
    return current, found.labeler, len(found.labels) - len(current)


def _entry(entry: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    quantiles = [
        {
            "title": f"{100 * part['low']:.0f} to {100 * part['high']:.0f} % of active tokens",
            "range": f"{part['smallest']:.2f} to {part['largest']:.2f}",
            "examples": [_context(example, models) for example in part["examples"]],
        }
        for part in entry.get("quantiles", [])
    ]
    promoted = entry.get("promoted")
    return {
        "top": [_context(example, models) for example in entry["examples"]],
        "quantiles": quantiles,
        "n_active": entry.get("n_active", 0),
        "n_random_rows": entry.get("n_random_rows", 0),
        "promoted": [(name, promoted["models"][name]) for name in models if name in promoted["models"]]
        if promoted
        else [],
        "final_norm": promoted["final_norm"] if promoted else "",
    }


def _context(example: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """A line for every read-out; neighboring tokens that look alike are one run."""
    activations, tokens = example["activations"], example["tokens"]
    largest = max(max(values, default=0.0) for values in activations.values())
    lines = []
    for name in (name for name in ("joint", *models) if name in activations):
        values = activations[name]
        lines.append({"name": name, "runs": _runs(tokens, values, largest, example["peak"]), "max": max(values)})
    return {"lines": lines, "sample": example["sample"]}


def _runs(tokens: Sequence[str], values: Sequence[float], largest: float, peak: int) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        shade = _shade(value, largest)
        if shade == 0 and place != peak and runs and runs[-1]["plain"]:
            runs[-1]["tokens"].append(token)
        else:
            plain = shade == 0 and place != peak
            runs.append({"tokens": [token], "shade": shade, "peak": place == peak, "value": value, "plain": plain})
    return runs


def _shade(value: float, largest: float) -> int:
    """0 for an activation of zero, else 1 to the number of shades."""
    if value <= 0 or largest <= 0:
        return 0
    return min(_SHADES, 1 + int(_SHADES * value / largest))
