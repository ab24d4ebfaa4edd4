"""The page of features by example: contexts of every feature, the tokens it promotes, and its label."""

from collections.abc import Sequence
from typing import NamedTuple

from mechprobe.features.examples.labels import entry_digest
from mechprobe.report.pages.templates import environment
from mechprobe.report.result import FeatureRow, JsonObject
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.features import feature_rows

N_SHADES = 5
"""Number of background shades; each has one CSS class, so that tokens need no style attribute."""


class TokenRun(NamedTuple):
    """One token and its activation, or adjacent tokens without activation."""

    tokens: tuple[str, ...]
    shade: int
    """0 for no activation, else 1 to `N_SHADES`."""
    peak: bool
    """Whether the context was chosen for this token."""
    value: float

    @property
    def unmarked(self) -> bool:
        """Whether the tokens are drawn as plain text."""
        return self.shade == 0 and not self.peak


class ContextLine(NamedTuple):
    """One context under one read-out: ``joint``, or the name of a model."""

    name: str
    runs: list[TokenRun]
    largest: float


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


def examples_page(files: RunFiles) -> str | None:
    """The page as self-contained HTML without scripts or external resources, selected features first.

    It is None if the run has no examples.
    """
    if not files.examples:
        return None
    selected = [feature for feature in files.selected if feature in files.examples]
    order = [*selected, *(feature for feature in files.examples if feature not in selected)]
    labels, n_stale = current_labels(files)
    return (
        environment()
        .get_template("examples.html.j2")
        .render(
            name=files.name,
            tuned=[name for name in files.models if name != files.base],
            trusted=files.trusted,
            readout=(files.features or {}).get("readout", "–"),
            labeler=files.labels.labeler if files.labels else "",
            n_stale=n_stale,
            n_shades=N_SHADES,
            features=[
                _entry(row, files, selected=row.feature in selected, label=labels.get(row.feature, ""))
                for row in feature_rows(order, files.examples, files.features)
            ],
        )
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
        top=[_context(example, models) for example in entry["examples"]],
        quantiles=[
            QuantilePart(
                title=f"{100 * part['low']:.0f} to {100 * part['high']:.0f} % of active tokens",
                range=f"{part['smallest']:.2f} to {part['largest']:.2f}",
                contexts=[_context(example, models) for example in part["examples"]],
            )
            for part in entry["quantiles"]
        ],
        n_active=entry["n_active"],
        n_random_rows=entry["n_random_rows"],
        promoted=[(name, promoted["models"][name]) for name in models if name in promoted["models"]],
        final_norm=promoted["final_norm"],
    )


def _context(example: JsonObject, models: Sequence[str]) -> Context:
    activations: dict[str, list[float]] = example["activations"]
    largest = max(max(values, default=0.0) for values in activations.values())
    return [
        ContextLine(name, _runs(example["tokens"], activations[name], largest, example["peak"]), max(activations[name]))
        for name in ("joint", *models)
        if name in activations
    ]


def _runs(tokens: Sequence[str], values: Sequence[float], largest: float, peak: int) -> list[TokenRun]:
    runs: list[TokenRun] = []
    for index, (token, value) in enumerate(zip(tokens, values, strict=True)):
        active = value > 0 and largest > 0
        shade = min(N_SHADES, 1 + int(N_SHADES * value / largest)) if active else 0
        run = TokenRun((token,), shade, index == peak, value)
        if run.unmarked and runs and runs[-1].unmarked:
            run = TokenRun((*runs.pop().tokens, token), 0, False, 0.0)
        runs.append(run)
    return runs
