"""``mechprobe drift``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.drift.divergence.result import DivergenceResult

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Activation store, instead of the run's.")]
Checkpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of further models, <arm>/step_<n>/ (rl/step_000040/).")
]

_COLUMNS = {
    "KL(·‖base)": "kl", "KL(base‖·)": "kl_reverse", "kl_mc": "kl_mc", "JS": "js", "same top-1": "top1_agreement",
    "rank > 1": "rank_base_over_1",
}  # fmt: skip
_MOST_ROWS = 28


@takes_shared_options
def drift(shared: Shared, out: Out = None, cache: Cache = None, checkpoints: Checkpoints = None) -> None:
    """Compare the next-token distributions and residual streams of every model with those of base, on the store's tokens."""
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, say_result
    from mechprobe.pipeline.plans import plan_drift

    extra = {"drift": {"checkpoints": str(checkpoints)}} if checkpoints else None
    run = shared.start(extra, own_inputs=cache is not None, drift=out, cache=cache)
    folder = run.layout.drift
    found = carry_out(shared, run, "drift", folder=folder, plan=lambda: plan_drift(run), work=run.drift)
    if found is None:
        return
    if shared.as_json:
        say_json({"folder": str(folder), **found.to_dict()})
        return
    say_result(drift_lines(found), folder)


def drift_lines(found: "DivergenceResult") -> list[str]:
    """The main numbers of every model and source, CKA at the last layer, and the notes."""
    from mechprobe.cli.printing import table_lines
    from mechprobe.formatting import decimal, nats, percent

    rows: dict[str, dict[str, str]] = {}
    for row in found.rows:
        name = next((title for title, metric in _COLUMNS.items() if metric == row.metric), None)
        if row.by != "all" or name is None:
            continue
        heat = "" if row.temperature is None else f" at T={row.temperature:g}"
        cells = rows.setdefault(f"{row.model}  {row.source}{heat}", {"n": f"{row.n:,} in {row.n_sequences:,}"})
        share = row.metric in ("top1_agreement", "rank_base_over_1")
        cells[name] = (
            f"{percent(row.value, 1)} %"
            if share
            else nats(row.interval)
            if row.metric in ("kl", "kl_reverse", "js")
            else decimal(row.value, 4)
        )
    shown = dict(list(rows.items())[:_MOST_ROWS])
    more = [f"... and {len(rows) - len(shown)} more rows in divergence.json"] if len(rows) > len(shown) else []
    deepest = max((row.layer for row in found.layers), default=0)
    cka = [
        f"{row.model} {decimal(row.value, 3)}" for row in found.layers if (row.layer, row.metric) == (deepest, "cka")
    ]
    return [
        f"Divergence from {found.base} in nats per predicted token, exact over {found.n_ids:,} ids; 95 % interval over sequences",
        *table_lines(shown, [*_COLUMNS, "n"]),
        *more,
        *([f"Linear CKA with {found.base} after the last block: {', '.join(cka)}"] if cka else []),
        *found.notes[:6],
    ]
