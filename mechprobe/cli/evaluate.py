"""``mechprobe evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.localize import Scorer, Tasks, task_settings

Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]


def evaluate(
    out: Out = Path("evals"),
    config: options.Config = None,
    set_: options.Set = None,
    models: options.Models = None,
    tasks: Tasks = None,
    scorer: Scorer = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Greedy outcome of every model on every sample: right, wrong or unparsed."""
    from mechprobe.artifacts import read_manifest
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import load_settings
    from mechprobe.cli.summary import accuracy_lines
    from mechprobe.evals.outcomes import evaluate_outcomes

    settings = load_settings(config, set_, models=models, seed=seed, device=device, extra=task_settings(tasks, scorer))
    family = settings.family(trust_remote_code=trust_remote_code)
    loaded = settings.load_tasks()
    if dry_run:
        samples = sum(len(task.take(settings.evaluate.n_per_task).samples) for task in loaded)
        say(f"{len(family)} models × {samples} samples; nothing was written.")
        return
    evaluate_outcomes(family, loaded, out, settings.evaluate, force=force)
    results = read_manifest(out)["results"]
    if as_json:
        say_json(results)
        return
    for line in accuracy_lines(results):
        say(line)
    say(f"\nWritten to {out}\nNext: mechprobe select --run RUN (the folder that holds evals/ and crosscoder/)")
