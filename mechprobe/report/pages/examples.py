"""The page of features by example: contexts of every feature, the tokens it promotes, and its label."""

from typing import NamedTuple

from mechprobe.features.examples.labels import entry_digest
from mechprobe.report.pages.templates import navigation, render
from mechprobe.report.result import ContextLine, FeatureRow, JsonObject
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.contexts import context_lines
from mechprobe.report.sections.features import feature_rows

Context = list[ContextLine]


class QuantilePart(NamedTuple):
    """Random contexts from one part of the range of activations."""

    title: str
    range: str
    contexts: list[Context]


class FeatureEntry(NamedTuple):
    """Everything that the page shows of one feature."""

    facts: FeatureRow
    selected: bool
    label: str
    top: list[Context]
    quantiles: list[QuantilePart]
    n_active: int
    n_random_rows: int
    promoted: list[tuple[str, JsonObject]]
    """``(model, {"promoted": ..., "suppressed": ...})``."""
    final_norm: str


def examples_page(files: RunFiles, links: dict[str, bool]) -> str:
    """The page as HTML, selected features first; ``links`` says which further pages there are."""
    selected = [feature for feature in files.selected if feature in files.examples]
    order = [*selected, *(feature for feature in files.examples if feature not in selected)]
    labels, n_stale = current_labels(files)
    return render(
        "examples.html.j2",
        here="examples.html",
        pages=navigation(links),
        name=files.name,
        title="Features by example",
        tuned=[name for name in (files.features or {}).get("models", []) if name != files.base],
        trusted=files.trusted,
        readout=(files.features or {}).get("readout", "–"),
        labeler=files.labels.labeler if files.labels else "",
        n_stale=n_stale,
        features=[
            _entry(row, files, selected=row.feature in selected, label=labels.get(row.feature, ""))
            for row in feature_rows(order, files.examples, files.features)
        ],
    )


def current_labels(files: RunFiles) -> tuple[dict[int, str], int]:
    """Labels of the current examples, and the number of labels of other examples."""
    found = files.labels
    if found is None:
        return {}, 0
    current = {
        feature: label
        for feature, label in found.labels.items()
        if feature in files.examples and entry_digest(files.examples[feature]) == found.examples[feature]
    }
    return current, len(found.labels) - len(current)


def _entry(row: FeatureRow, files: RunFiles, *, selected: bool, label: str) -> FeatureEntry:
    entry, models = files.examples[row.feature], files.models
    promoted = entry["promoted"] or {"models": {}, "final_norm": ""}
    return FeatureEntry(
        facts=row,
        selected=selected,
        label=label,
        top=[context_lines(example, models) for example in entry["examples"]],
        quantiles=[
            QuantilePart(
                title=f"{100 * part['low']:.0f} to {100 * part['high']:.0f} % of active tokens",
                range=f"{part['smallest']:.2f} to {part['largest']:.2f}",
                contexts=[context_lines(example, models) for example in part["examples"]],
            )
            for part in entry["quantiles"]
        ],
        n_active=entry["n_active"],
        n_random_rows=entry["n_random_rows"],
        promoted=[(name, promoted["models"][name]) for name in models if name in promoted["models"]],
        final_norm=promoted["final_norm"],
    )
