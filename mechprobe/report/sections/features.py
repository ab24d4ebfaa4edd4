"""The crosscoder and its quality on held-out tokens; its features: their classes, the selected ones, and example contexts."""

from collections.abc import Iterable, Mapping, Sequence

from mechprobe.formatting import decimal, listing, ordered, percent
from mechprobe.report.config import ReportConfig
from mechprobe.report.result import (
    ClassCount,
    DictionarySection,
    FeatureRow,
    FeaturesSection,
    JsonObject,
    QualityRow,
    SelectionSection,
)
from mechprobe.report.run_files import RunFiles

_SHOWN = ("variant", "d_sae", "k", "d_model", "n_models")
"""Settings of the crosscoder that the report shows."""


def dictionary_section(files: RunFiles) -> DictionarySection | None:
    """The section, or None if the crosscoder has neither been trained nor measured."""
    quality = files.quality
    if quality is None and not files.training:
        return None
    config = (files.crosscoder or {}).get("config", {})
    last = files.training[-1] if files.training else {}
    models = ordered(quality["models"], files.models) if quality else {}
    return DictionarySection(
        config={key: config[key] for key in _SHOWN if key in config},
        rows=[_quality_row(name, value) for name, value in models.items()],
        l0=decimal(quality["l0"], 1) if quality else None,
        dead=percent(quality["dead_share"], 1) if quality else None,
        n_rows=quality["n_rows"] if quality else None,
        targets=next((model["targets"] for model in models.values() if model.get("targets")), None),
        trusted=quality["trusted"] if quality else None,
        failures=quality["failures"] if quality else [],
        steps=last.get("step"),
        tokens=last.get("tokens"),
    )


def _quality_row(name: str, value: JsonObject) -> QualityRow:
    """Quality on one model; cross-entropies are missing if the models were not available."""
    n = value.get("n_predictions")
    losses = [decimal(value.get(f"ce_{kind}"), 3) for kind in ("clean", "spliced", "zero")]
    measured = value.get("ce_recovered") is not None
    return QualityRow(
        model=name,
        fve=_fve(value),
        fve_per_token=decimal(value["fve_per_token"], 3),
        l0=decimal(value["l0"], 1),
        dead=f"{percent(value['dead_share'], 1)} %",
        ce=" / ".join(losses) if measured else "–",
        recovered=decimal(value.get("ce_recovered"), 3),
        kl=decimal(value.get("kl_spliced"), 3),
        n=f"{n:,}" if measured and n else "–",
    )


def _fve(value: JsonObject) -> str:
    """FVE, and FVE without far tokens where some tokens have more than 10 times the median norm."""
    without = value.get("fve_ordinary")
    return decimal(value["fve"], 3) + (f" (without far tokens {decimal(without, 3)})" if without is not None else "")


def dictionary_sentence(files: RunFiles, quality: JsonObject) -> str:
    """The verdict of the quality gate and the FVE of every model."""
    models = ordered(quality["models"], files.models)
    fve = listing(f"{_fve(value)} for {name}" for name, value in models.items())
    state = "passes" if quality["trusted"] else "fails"
    return f"The crosscoder {state} the quality gate. On held-out tokens, its FVE is {fve}."


def selection_section(selection: JsonObject | None) -> SelectionSection | None:
    """The section, or None if `mechprobe select` has not run."""
    if selection is None:
        return None
    ids, note = [int(feature) for feature in selection["features"]], selection["note"]
    return SelectionSection(
        sentence=selection_sentence(selection), ids=ids, n_controls=len(selection["controls"]), note=note
    )


def selection_sentence(selection: JsonObject) -> str:
    """Size of the selected set, its ranking, and how many features are task-agnostic."""
    chosen, agnostic = len(selection["features"]), len(selection["agnostic"])
    return (
        f"The {selection['ranking']} ranking selects {chosen} features; {agnostic} features pass the threshold on "
        f"every selection task ({listing(selection['tasks'])})."
    )


def features_section(files: RunFiles, config: ReportConfig) -> FeaturesSection | None:
    """The section, or None if there is neither a feature table nor a selection."""
    summary, n = files.features, config.n_features
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
        selected=feature_rows(selected[:n], files.examples, summary),
        others=feature_rows(others[:n], files.examples, summary),
    )


def _counts(summary: JsonObject) -> list[ClassCount]:
    counts, by_norm = ordered_classes(summary["class_counts"], summary["models"]), summary["class_by_norm_counts"]
    return [ClassCount(name=name, count=count, by_norm=by_norm.get(name, 0)) for name, count in counts.items()]


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
    models, base = (summary["models"], summary["base"]) if summary else ([], "base")
    tuned = [name for name in models if name != base]
    return [_feature_row(feature, examples[feature], models, base, tuned) for feature in ids if feature in examples]


def _feature_row(feature: int, entry: JsonObject, models: Sequence[str], base: str, tuned: Sequence[str]) -> FeatureRow:
    facts = entry["statistics"]

    def cells(column: str, names: Sequence[str]) -> list[str]:
        return [decimal(facts.get(f"{column}_{name}")) for name in names]

    row = {
        "feature": feature,
        "class": facts.get("class", "–"),
        "mas": cells("mas", models),
        "nrn": cells("nrn", tuned),
        "density": [percent(facts.get(f"density_{name}"), 1) for name in models],
        "nu": list(map(" / ".join, zip(cells("nu_error", tuned), cells("nu_reconstruction", tuned), strict=True))),
        "cosine": [decimal(facts.get(f"cosine_{base}_{m}", facts.get(f"cosine_{m}_{base}"))) for m in tuned],
        "shift": cells("shift", tuned),
        "examples": entry["examples"],
    }
    return FeatureRow.model_validate(row)
