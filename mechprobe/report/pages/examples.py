"""The page of features by example: contexts of every feature, the tokens it promotes, and its label."""

from collections.abc import Sequence
from dataclasses import dataclass

from mechprobe.features.examples.labels import entry_digest
from mechprobe.report.pages.templates import environment
from mechprobe.report.result import FeatureRow, JsonObject
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.features import feature_rows

TEMPLATE = "examples.html.j2"
N_SHADES = 5
"""Number of background shades; each has one CSS class, so that tokens need no style attribute."""


@dataclass(frozen=True)
class TokenRun:
    """One token, or adjacent tokens without activation.

    Attributes:
        tokens: The tokens.
        shade: 0 for no activation, else 1 to `N_SHADES`.
        peak: Whether the context was chosen for this token.
        value: Activation of the token.
    """

    tokens: tuple[str, ...]
    shade: int
    peak: bool
    value: float

    @property
    def unmarked(self) -> bool:
        """Whether the tokens are drawn as plain text."""
        return self.shade == 0 and not self.peak


@dataclass(frozen=True)
class ContextLine:
    """One context under one read-out: ``joint``, or the name of a model."""

    name: str
    runs: list[TokenRun]
    largest: float


Context = list[ContextLine]


@dataclass(frozen=True)
class QuantilePart:
    """Random contexts from one part of the range of activations."""

    title: str
    range: str
    contexts: list[Context]


@dataclass(frozen=True)
class FeatureEntry:
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


@dataclass(frozen=True)
class ExamplesContent:
    """Content of the page."""

    name: str
    tuned: list[str]
    trusted: bool
    readout: str
    labeler: str
    n_stale: int
    """Number of labels that were made for other examples than the current ones."""
    features: list[FeatureEntry]


def examples_page(files: RunFiles) -> str | None:
    """The page as self-contained HTML without scripts or external resources; None if the run has no examples."""
    content = examples_content(files)
    if content is None:
        return None
    return environment().get_template(TEMPLATE).render(vars(content), n_shades=N_SHADES)


def examples_content(files: RunFiles) -> ExamplesContent | None:
    """Content of the page, selected features first; None if the run has no examples."""
    if not files.examples:
        return None
    selected = [feature for feature in files.selected if feature in files.examples]
    order = [*selected, *(feature for feature in files.examples if feature not in selected)]
    labels, n_stale = _current_labels(files)
    return ExamplesContent(
        name=files.name,
        tuned=[name for name in files.models if name != files.base],
        trusted=files.trusted,
        readout=(files.features or {}).get("readout", "–"),
        labeler=files.labels.labeler if files.labels else "",
        n_stale=n_stale,
        features=[
            _entry(row, files, selected=row.feature in selected, label=labels.get(row.feature, ""))
            for row in feature_rows(order, files.examples, files.features)
        ],
    )


def _current_labels(files: RunFiles) -> tuple[dict[int, str], int]:
    """Labels of the current examples, and the number of labels of other examples."""
    if files.labels is None:
        return {}, 0
    found = files.labels
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
        run = TokenRun((token,), _shade(value, largest), index == peak, value)
        if run.unmarked and runs and runs[-1].unmarked:
            run = TokenRun((*runs.pop().tokens, token), 0, False, 0.0)
        runs.append(run)
    return runs


def _shade(value: float, largest: float) -> int:
    """0 for no activation, else 1 to `N_SHADES`."""
    if value <= 0 or largest <= 0:
        return 0
    return min(N_SHADES, 1 + int(N_SHADES * value / largest))
