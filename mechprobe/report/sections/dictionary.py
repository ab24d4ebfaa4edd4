"""The crosscoder: its size, its training, and its quality on held-out tokens."""

from mechprobe.formatting import decimal, listing, percent
from mechprobe.report.result import DictionarySection, JsonObject, QualityRow
from mechprobe.report.run_files import RunFiles
from mechprobe.report.titles import ordered

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
        rows=[_row(name, value) for name, value in models.items()],
        l0=decimal(quality["l0"], 1) if quality else None,
        dead=percent(quality["dead_share"], 1) if quality else None,
        n_rows=quality["n_rows"] if quality else None,
        targets=next((model["targets"] for model in models.values() if model.get("targets")), None),
        trusted=quality["trusted"] if quality else None,
        failures=quality["failures"] if quality else [],
        steps=last.get("step"),
        tokens=last.get("tokens"),
    )


def _row(name: str, value: JsonObject) -> QualityRow:
    """Quality on one model; cross-entropies are missing if the models were not available."""
    n = value.get("n_predictions")
    losses = [decimal(value.get(f"ce_{kind}"), 3) for kind in ("clean", "spliced", "zero")]
    measured = value.get("ce_recovered") is not None
    return QualityRow(
        model=name,
        fve=decimal(value["fve"], 3),
        fve_per_token=decimal(value["fve_per_token"], 3),
        l0=decimal(value["l0"], 1),
        dead=f"{percent(value['dead_share'], 1)} %",
        ce=" / ".join(losses) if measured else "–",
        recovered=decimal(value.get("ce_recovered"), 3),
        kl=decimal(value.get("kl_spliced"), 3),
        n=f"{n:,}" if measured and n else "–",
    )


def dictionary_sentence(files: RunFiles, quality: JsonObject) -> str:
    """The verdict of the quality gate and the FVE of every model."""
    models = ordered(quality["models"], files.models)
    fve = listing(f"{decimal(value['fve'], 3)} for {name}" for name, value in models.items())
    state = "passes" if quality["trusted"] else "fails"
    return f"The crosscoder {state} the quality gate. On held-out tokens, its FVE is {fve}."
