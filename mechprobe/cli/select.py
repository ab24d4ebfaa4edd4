"""``mechprobe select``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options

RunFolder = Annotated[
    Path, typer.Option("--run", "-r", help="Run folder that holds crosscoder/, evals/ and what else the stage reads.")
]
Features = Annotated[
    str | None,
    typer.Option(
        "--features", "-f",
        help="top50, top:N, agnostic, rule:\"mas_rl>0.5 and density_joint<0.1\", file:PATH, ids:1,2,3 or random:50@seed.",
    ),
]  # fmt: skip
Ranking = Annotated[
    str | None,
    typer.Option(
        "--ranking", help="joint (joint attribution), score (the paper's Score), ig (integrated gradients) or relie."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder; by default inside the run folder.")]


def select(
    run: RunFolder = Path("runs/lab"),
    out: Out = None,
    features: Features = None,
    ranking: Ranking = None,
    config: options.Config = None,
    set_: options.Set = None,
    models: options.Models = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Score every feature on the samples the tuned model gained, and choose those that all tasks share."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.selection_lines import selection_lines
    from mechprobe.cli.settings import stage_of_run
    from mechprobe.files import read_json
    from mechprobe.pipeline import SELECTION

    section = {key: value for key, value in (("rule", features), ("ranking", ranking)) if value is not None}
    chain = stage_of_run(
        run, config, set_, models=models, seed=seed, device=device, extra={"select": section}, force=force,
        trust=trust_remote_code,
    )  # fmt: skip
    chain.select(out)
    folder = out or run / SELECTION
    data = read_json(folder / "selection.json")
    if as_json:
        say_json(data)
        return
    for line in selection_lines(data):
        say(line)
    say(f"\nWritten to {folder}\n{next_step(run, folder, SELECTION, 'intervene')}")


def next_step(run: Path, folder: Path, own: str, command: str) -> str:
    """What to run next; a stage that was written beside the run's own is not what the next command reads unless told to."""
    text = f"Next: mechprobe {command} --run {run}"
    if folder.resolve() == (run / own).resolve():
        return text
    return (
        f"{text} --selection {folder}" if command == "intervene" else f"{text} (it reads {run / own}, not this folder)"
    )
