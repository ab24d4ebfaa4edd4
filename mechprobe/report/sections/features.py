"""The features: their classes, the selected ones, and example contexts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mechprobe.formatting import decimal, listing, percent
from mechprobe.report.config import ReportConfig
from mechprobe.report.result import ClassCount, FeatureRow, FeaturesSection, JsonObject
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.selection import selection_section
from mechprobe.report.titles import ordered


def features_section(files: RunFiles, config: ReportConfig) -> FeaturesSection | None:
    """The section, or None if there is neither a feature table nor a selection."""
    summary = files.features
    if summary is None and files.selection is None:
        return None
    selected = [feature for feature in files.selected if feature in files.examples]
    others = [feature for feature in files.examples if feature not in files.selected]
    models = list(summary["models"]) if summary else []
    return FeaturesSection(
        summary=summary,
        trusted=files.trusted,
        models=models,
        tuned=[name for name in models if name != files.base],
        counts=_counts(summary) if summary else [],
        selection=selection_section(files.selection),
        selected=feature_rows(selected[: config.n_features], files.examples, summary),
        others=feature_rows(others[: config.n_features], files.examples, summary),
    )


def _counts(summary: JsonObject) -> list[ClassCount]:
    by_norm = summary["class_by_norm_counts"]
    return [
        ClassCount(name=name, count=count, by_norm=by_norm.get(name, 0))
        for name, count in ordered_classes(summary["class_counts"], summary["models"]).items()
    ]


def ordered_classes(counts: Mapping[str, int], models: Sequence[str]) -> dict[str, int]:
    """Class counts in the order shared, one model only, several models, unconfirmed, dead."""
    last = [name for name in ("unconfirmed", "dead") if name in counts]
    several = sorted(name for name in counts if "+" in name)
    return ordered(counts, ["shared", *(f"{name}-only" for name in models), *several, *last])


def class_sentence(summary: JsonObject) -> str:
    """Number of features in every class."""
    counts = ordered_classes(summary["class_counts"], summary["models"])
    named = listing(f"{count:,} {name}" for name, count in counts.items() if name != "dead" and count)
    return (
        f"Of {summary['n_features']:,} features, {summary['n_alive']:,} are live: {named}. Decoder norms and latent "
        f"scaling on {summary['n_rows']:,} tokens decide the classes."
    )


def feature_rows(
    ids: Iterable[int], examples: Mapping[int, JsonObject], summary: JsonObject | None
) -> list[FeatureRow]:
    """One row per feature that has example contexts."""
    models = list((summary or {}).get("models", []))
    base = (summary or {}).get("base", "base")
    tuned = [name for name in models if name != base]
    return [_row(feature, examples[feature], models, base, tuned) for feature in ids if feature in examples]


def _row(feature: int, entry: JsonObject, models: Sequence[str], base: str, tuned: Sequence[str]) -> FeatureRow:
    facts = entry["statistics"]

    def cells(column: str, names: Sequence[str]) -> list[str]:
        return [decimal(facts.get(f"{column}_{name}")) for name in names]

    nu = zip(cells("nu_error", tuned), cells("nu_reconstruction", tuned), strict=True)
    return FeatureRow.model_validate(
        {
            "feature": feature,
            "class": facts.get("class", "–"),
            "mas": cells("mas", models),
            "nrn": cells("nrn", tuned),
            "density": [percent(facts.get(f"density_{name}"), 1) for name in models],
            "nu": [f"{error} / {reconstruction}" for error, reconstruction in nu],
            "cosine": [decimal(_of_pair(facts, "cosine", base, name)) for name in tuned],
            "shift": cells("shift", tuned),
            "examples": entry["examples"],
        }
    )


def _of_pair(facts: JsonObject, column: str, first: str, second: str) -> Any:
    """A statistic of two models; its column names them in either order."""
    return facts.get(f"{column}_{first}_{second}", facts.get(f"{column}_{second}_{first}"))
