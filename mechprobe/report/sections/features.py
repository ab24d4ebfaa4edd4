"""The crosscoder and its quality on held-out tokens; its features: their classes, the selected ones, and example contexts."""

from collections.abc import Iterable, Mapping, Sequence

from mechprobe.formatting import MISSING, decimal, listing, ordered, percent
from mechprobe.report.config import ReportConfig
from mechprobe.report.result import FeatureContexts, FeatureRow, JsonObject, Link, Picture, Section, Table
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.contexts import context_lines
from mechprobe.report.sections.parts import counted
from mechprobe.selection.never_active import never_active_sentences

_DICTIONARY = "Dictionary: the crosscoder, shared by all models"
_FEATURES = "Features: which models have them"
N_CONTEXTS = 2
"""Contexts of a feature on the page; the further pages have more."""
_SELECTION = "Selection: the features that are tested"
_SHOWN = ("variant", "d_sae", "k", "d_model", "n_models")
"""Settings of the crosscoder that the report shows."""


def dictionary_section(files: RunFiles) -> Section:
    """How the crosscoder was trained, and its quality on held-out tokens."""
    quality = files.quality
    if quality is None and not files.training:
        return files.absent("train-sae", "dictionary", _DICTIONARY)
    config = (files.crosscoder or {}).get("config", {})
    last = files.training[-1] if files.training else {}
    made = ", ".join(f"{key} {config[key]}" for key in _SHOWN if key in config)
    trained = f"trained on {last['tokens']:,} tokens in {last['step']:,} steps" if last.get("tokens") else ""
    about = "; ".join(filter(None, [made, trained]))
    picture = Picture(
        name="training",
        title="Training of the crosscoder",
        caption="The FVE in this figure is measured on training batches, the FVE in the table on held-out tokens.",
    )
    return Section(
        id="dictionary",
        title=_DICTIONARY,
        says=dictionary_sentence(files, quality)
        if quality
        else "The crosscoder is trained, and its quality is not measured yet.",
        paragraphs=[
            *([f"{about[:1].upper()}{about[1:]}."] if about else []),
            *(quality["failures"] if quality else []),
        ],
        pictures=[picture],
        tables=[_quality_table(files, quality)] if quality else [],
    )


def _quality_table(files: RunFiles, quality: JsonObject) -> Table:
    models = ordered(quality["models"], files.models)
    targets = next((model["targets"] for model in models.values() if model.get("targets")), None)
    note = (
        f"Measured on {quality['n_rows']:,} held-out tokens. Each row uses the read-out of its model; the joint read-out has L0 "
        f"{decimal(quality['l0'], 1)} and {percent(quality['dead_share'], 1)} % dead features. CE: cross-entropy in nats"
        f"{' on response tokens' if targets == 'response' else ''}, over n predictions, with the clean residual, with its "
        "reconstruction (spliced), and with zeros in its place."
    )
    head = [
        "model",
        "FVE",
        "FVE per token",
        "L0",
        "dead %",
        "CE clean / spliced / zero",
        "CE recovered",
        "KL spliced",
        "n",
    ]
    rows = [_quality_row(name, value) for name, value in models.items()]
    return Table(title="Quality on held-out tokens", head=head, rows=rows, notes=[note])


def _quality_row(name: str, value: JsonObject) -> list[str]:
    """Quality on one model; cross-entropies are missing if the models were not available."""
    n = value.get("n_predictions")
    losses = [decimal(value.get(f"ce_{kind}"), 3) for kind in ("clean", "spliced", "zero")]
    measured = value.get("ce_recovered") is not None
    return [
        name,
        _fve(value),
        decimal(value["fve_per_token"], 3),
        decimal(value["l0"], 1),
        percent(value["dead_share"], 1),
        " / ".join(losses) if measured else MISSING,
        decimal(value.get("ce_recovered"), 3),
        decimal(value.get("kl_spliced"), 3),
        f"{n:,}" if measured and n else MISSING,
    ]


def _fve(value: JsonObject) -> str:
    """FVE, and FVE without far tokens where some tokens have more than 10 times the median norm."""
    without = value.get("fve_ordinary")
    return decimal(value["fve"], 3) + (f" (without far tokens {decimal(without, 3)})" if without is not None else "")


def dictionary_sentence(files: RunFiles, quality: JsonObject) -> str:
    """The verdict of the quality gate and the FVE of every model."""
    models = ordered(quality["models"], files.models)
    fve = listing(f"{_fve(value)} for {name}" for name, value in models.items())
    state = "passes" if quality["trusted"] else "fails"
    return f"The crosscoder {state} the quality gate: on held-out tokens, its FVE is {fve}."


def selection_sentence(selection: JsonObject) -> str:
    """Size of the selected set, its ranking, and how many features are task-agnostic."""
    chosen, agnostic = len(selection["features"]), len(selection["agnostic"])
    return (
        f"The {selection['ranking']} ranking selects {chosen} features; {agnostic} features pass the threshold on "
        f"every selection task ({listing(selection['tasks'])})."
    )


def features_section(files: RunFiles, config: ReportConfig, links: Sequence[Link]) -> Section:
    """Which models have the features, and examples of those that stand out."""
    summary = files.features
    if summary is None:
        return files.absent("features", "features", _FEATURES)
    others = [feature for feature in files.examples if feature not in files.selected][: config.n_features]
    rows = feature_rows(others, files.examples, summary)
    caption = (
        "Shares of the decoder norm (L1, in each model's own units) over live features. To the right of the dotted line, a model has "
        "more than an equal share. Norms alone are no proof, because an L1 penalty can make a shared feature look specific; the "
        "classes therefore also require latent scaling."
    )
    stand_out = feature_table("Other features: highest NRN, largest decoder shift", rows, summary, files.base)
    return Section(
        id="features",
        title=_FEATURES,
        says=class_sentence(summary),
        untrusted=not files.trusted,
        paragraphs=[
            f"Decoder norms and latent scaling on {summary['n_rows']:,} tokens decide the classes.",
            *(str(value["sentence"]) for value in files.nulls.values()),
        ],
        pictures=[Picture(name="shares", title="MAS and NRN of the features", caption=caption)],
        tables=[_class_table(summary), *([stand_out] if rows else [])],
        contexts=feature_contexts(rows, files),
        links=list(links),
    )


def _class_table(summary: JsonObject) -> Table:
    counts, by_norm = ordered_classes(summary["class_counts"], summary["models"]), summary["class_by_norm_counts"]
    limits = summary["thresholds"]
    note = (
        f"A model lacks a feature if its decoder norm is below {limits['absent_below']} times the largest. Latent scaling confirms "
        f"this if ν is at most {limits['nu_error_max']} on the reconstruction error and at most {limits['nu_reconstruction_max']} on "
        f"the reconstruction. Read-out of a single model: {summary['readout']}."
    )
    rows = [[name, f"{count:,}", f"{by_norm.get(name, 0):,}"] for name, count in counts.items()]
    head = ["class", "confirmed by latent scaling", "by decoder norms alone"]
    return Table(title="Classes of features", head=head, rows=rows, notes=[note])


def selection_section(files: RunFiles, config: ReportConfig, links: Sequence[Link]) -> Section:
    """The selected features, and the contexts in which they are active."""
    selection = files.selection
    if selection is None:
        return files.absent("select", "selection", _SELECTION)
    shown = [feature for feature in files.selected if feature in files.examples][: config.n_features]
    rows = feature_rows(shown, files.examples, files.features)
    note = str(selection["note"]).strip(".")
    ids = ", ".join(map(str, files.selected))
    paragraphs = [
        f"The set has {counted(len(selection['controls']), 'matched random set')} as controls.",
        *([f"{note[:1].upper()}{note[1:]}."] if note else []),
        *([f"Features in order of rank: {ids}."] if ids else []),
        *([] if files.interventions else never_active_sentences(selection)),
    ]
    table = feature_table(f"The first {len(rows)} selected features", rows, files.features, files.base)
    return Section(
        id="selection",
        title=_SELECTION,
        says=selection_sentence(selection),
        untrusted=not files.trusted,
        paragraphs=paragraphs,
        tables=[table] if rows else [],
        contexts=feature_contexts(rows, files),
        links=list(links),
    )


def feature_table(title: str, rows: Sequence[FeatureRow], summary: JsonObject | None, base: str) -> Table:
    """Statistics of some features, one row each."""
    models = list(summary["models"]) if summary else []
    tuned = [name for name in models if name != base]
    head = [
        "feature", "class", *(f"MAS {name}" for name in models), *(f"NRN {name}" for name in tuned),
        *(f"density {name} %" for name in models), *(f"ν error / recon. {name}" for name in tuned), *(f"cosine {name}" for name in tuned),
    ]  # fmt: skip
    cells = [[str(row.feature), row.class_, *row.mas, *row.nrn, *row.density, *row.nu, *row.cosine] for row in rows]
    return Table(title=title, head=head, rows=cells)


def feature_contexts(rows: Sequence[FeatureRow], files: RunFiles) -> list[FeatureContexts]:
    """The contexts of highest joint activation of some features, at most one per prompt."""
    tuned = [name for name in (files.features or {}).get("models", []) if name != files.base]
    found = []
    for row in rows:
        shown = [
            f"Feature {row.feature}",
            row.class_,
            *(f"NRN {m} {cell}" for m, cell in zip(tuned, row.nrn, strict=True)),
        ]
        shown += [f"decoder cosine {m} {cell}" for m, cell in zip(tuned, row.cosine, strict=True)]
        examples = files.examples[row.feature]["examples"][:N_CONTEXTS]
        contexts = [context_lines(example, files.models) for example in examples]
        found.append(FeatureContexts(title=" · ".join(shown), untrusted=not files.trusted, contexts=contexts))
    return found


def ordered_classes(counts: Mapping[str, int], models: Sequence[str]) -> dict[str, int]:
    """Class counts in the order shared, one model only, several models, unconfirmed, dead."""
    last = [name for name in ("unconfirmed", "dead") if name in counts]
    several = sorted(name for name in counts if "+" in name)
    return ordered(counts, ["shared", *(f"{name}-only" for name in models), *several, *last])


def class_sentence(summary: JsonObject) -> str:
    """Number of features in every class."""
    counts = ordered_classes(summary["class_counts"], summary["models"])
    named = listing(f"{count:,} {name}" for name, count in counts.items() if name != "dead" and count)
    return f"Of {summary['n_features']:,} features, {summary['n_alive']:,} are live: {named}."


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
    }
    return FeatureRow.model_validate(row)
