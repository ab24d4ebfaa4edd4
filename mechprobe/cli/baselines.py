"""``mechprobe baselines``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mechprobe.cli import options

Crosscoder = Annotated[Path, typer.Option("--crosscoder", help="Folder of a trained or imported crosscoder.")]
Cache = Annotated[Path, typer.Option("--cache", help="Activation store, written by `mechprobe cache`.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]
Saes = Annotated[
    list[str] | None,
    typer.Option("--sae", metavar="NAME=FOLDER ...", help="SAE saved by sae-lens, taken instead of training one."),
]


def baselines(
    out: Out = Path("baselines"),
    crosscoder: Crosscoder = Path("crosscoder"),
    cache: Cache = Path("cache"),
    saes: Saes = None,
    config: options.Config = None,
    set_: options.Set = None,
    models: options.Models = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """An SAE of each model, trained through sae-lens on the crosscoder's tokens, beside the crosscoder and its slice.

    Without --models the cross-entropy with the reconstruction spliced in is left out.
    """
    from mechprobe.cli.printing import say, say_json, table_lines
    from mechprobe.cli.settings import load_settings, parse_models

    extra = {"baselines": {"saes": parse_models(saes, option="--sae")}} if saes else None
    settings = load_settings(config, set_, models=models, seed=seed, device=device, extra=extra)

    from mechprobe.dictionary.baselines.stage import measure_baselines, plan_baselines

    if dry_run:
        plan = plan_baselines(crosscoder, cache, settings.baselines, features=settings.features)
        names = [name for name in plan.crosscoder.model_names if name not in plan.given]
        if plan.training is not None:
            say(
                f"{len(names)} SAEs ({', '.join(names)}), {plan.training.d_sae:,} features each, k = {plan.training.k}; "
                f"{plan.training.n_tokens:,} tokens each in {plan.training.n_steps:,} steps"
            )
        for name, folder in plan.given.items():
            say(f"{name}: given, {folder}")
        say("nothing was written.")
        return
    family = settings.family(trust_remote_code=trust_remote_code) if settings.models else None
    found = measure_baselines(
        crosscoder,
        cache,
        out=out,
        family=family,
        config=settings.baselines,
        features=settings.features,
        device=settings.device,
        force=force,
    )
    if as_json:
        say_json({"folder": str(out), **found})
        return
    say(f"Held-out prompts at {found['site']}, n = {found['held_out_rows']:,} tokens")
    for line in table_lines(baseline_rows(found), ["FVE", "L0", "dead", "CE recovered"]):
        say(line)
    sizes = ", ".join(f"{name} {size:,}" for name, size in found["d_sae"].items())
    say(f"features: {sizes}; the crosscoder's are shared by all models, each SAE's are its own")
    if found["ce_note"]:
        say(found["ce_note"])
    say(f"\nWritten to {out}")


def baseline_rows(found: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """One table row for each model and dictionary."""
    labels = {"crosscoder": "crosscoder", "slice": f"its slice, {found['readout']}", "sae": "own SAE"}
    width = max(map(len, found["models"]))
    rows = {}
    for name, by_label in found["models"].items():
        for label, row in by_label.items():
            rows[f"{name:<{width}}  {labels[label]}"] = {
                "FVE": _number(row["fve"]),
                "L0": _number(row["l0"], 1),
                "dead": "-" if row["dead_share"] is None else f"{100 * row['dead_share']:.0f} %",
                "CE recovered": _number(row.get("ce_recovered")),
            }
    return rows


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
