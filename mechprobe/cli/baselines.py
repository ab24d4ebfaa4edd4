"""``mechprobe baselines``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.dictionary.baselines.result import Baselines

Crosscoder = Annotated[
    Path | None, typer.Option("--crosscoder", help="Trained or imported crosscoder, instead of the run's.")
]
Cache = Annotated[Path | None, typer.Option("--cache", help="Activation store, instead of the run's.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Saes = Annotated[
    list[str] | None,
    typer.Option("--sae", metavar="NAME=FOLDER ...", help="SAE saved by sae-lens, used instead of training one."),
]


@takes_shared_options
def baselines(
    shared: Shared, out: Out = None, crosscoder: Crosscoder = None, cache: Cache = None, saes: Saes = None
) -> None:
    """Train an SAE of each model through sae-lens, and compare it with the crosscoder and its slice.

    Without models, the cross-entropy with the reconstruction spliced in is left out.
    """
    from mechprobe.cli.options import parse_models
    from mechprobe.cli.printing import say_json, table_lines
    from mechprobe.cli.stage_command import carry_out, say_result
    from mechprobe.pipeline.plans import plan_baselines

    extra = {"baselines": {"saes": parse_models(saes, option="--sae")}} if saes else None
    own_inputs = crosscoder is not None or cache is not None
    run = shared.start(extra, own_inputs=own_inputs, baselines=out, crosscoder=crosscoder, cache=cache)
    folder = run.layout.baselines
    found = carry_out(shared, run, "baselines", folder=folder, plan=lambda: plan_baselines(run), work=run.baselines)
    if found is None:
        return
    if shared.as_json:
        say_json({"folder": str(folder), **found.to_dict()})
        return
    sizes = ", ".join(f"{name} {size:,}" for name, size in found.d_sae.items())
    lines = [
        f"Held-out prompts at {found.site}, n = {found.held_out_rows:,} tokens",
        *table_lines(baseline_rows(found), ["FVE", "L0", "dead", "CE recovered"]),
        f"Features: {sizes}. All models share those of the crosscoder; each SAE has its own.",
    ]
    say_result([*lines, found.ce_note] if found.ce_note else lines, folder)


def baseline_rows(found: "Baselines") -> dict[str, dict[str, str]]:
    """One table row for each model and dictionary."""
    from mechprobe.formatting import decimal

    labels = {"crosscoder": "crosscoder", "slice": f"its slice, {found.readout}", "sae": "own SAE"}
    width = max(map(len, found.models))
    rows = {}
    for name, by_label in found.models.items():
        for label, row in by_label.items():
            rows[f"{name:<{width}}  {labels[label]}"] = {
                "FVE": decimal(row.fve, 3),
                "L0": decimal(row.l0, 1),
                "dead": f"{100 * row.dead_frac:.0f} %",
                "CE recovered": decimal(row.ce_recovered, 3),
            }
    return rows
