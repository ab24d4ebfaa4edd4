"""``mechprobe intervene``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.select import Features, Out, Ranking, RunFolder

Edits = Annotated[
    str | None,
    typer.Option("--edits-tuned", help="Edits of the tuned model, for example ablate,transplant,scale:0.5."),
]
EditsBase = Annotated[
    str | None, typer.Option("--edits-base", help="Edits of the base model, for example clamp:3.0,transplant.")
]
NRandom = Annotated[int | None, typer.Option("--n-random", help="Matched random sets for every edit.")]


def intervene(
    run: RunFolder = Path("runs/lab"),
    out: Out = None,
    features: Features = None,
    ranking: Ranking = None,
    edits_tuned: Edits = None,
    edits_base: EditsBase = None,
    n_random: NRandom = None,
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
    """Ablate and transplant in the tuned model, amplify and transplant in the base, with every control."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import stage_of_run
    from mechprobe.cli.summary import intervention_lines
    from mechprobe.pipeline import INTERVENTIONS

    section: dict[str, object] = {}
    for key, value in (("features", features), ("ranking", ranking), ("n_random", n_random)):
        if value is not None:
            section[key] = value
    for key, text in (("edits_tuned", edits_tuned), ("edits_base", edits_base)):
        if text is not None:
            section[key] = tuple(part for part in text.split(",") if part)
    chain = stage_of_run(
        run, config, set_, models=models, seed=seed, device=device, extra={"intervene": section}, force=force,
        trust=trust_remote_code,
    )  # fmt: skip
    if dry_run:
        say(chain.intervention_plan())
        return
    results = chain.intervene(out)
    if as_json:
        say_json(results.data)
        return
    for line in intervention_lines(results.data):
        say(line)
    say(f"\nWritten to {out or run / INTERVENTIONS}\nNext: mechprobe report --run {run}")
