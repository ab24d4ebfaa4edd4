"""``mechprobe evaluate``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    """Outcome of every model on every sample, greedy or by the likelier option: right, wrong or unparsed."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import load_settings
    from mechprobe.cli.summary import accuracy_lines
    from mechprobe.evals.stage import evaluate_outcomes
    from mechprobe.stage_folder import read_manifest

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
    for line in [*accuracy_lines(results), *bias_lines(results)]:
        say(line)
    say(f"\nWritten to {out}\nNext: mechprobe select --run RUN (the folder that holds evals/ and crosscoder/)")


def bias_lines(summary: Mapping[str, Any]) -> list[str]:
    """Where the chosen options stood, for tasks whose options are shown in several orders; no lines without such tasks."""
    from mechprobe.cli.printing import table_lines
    from mechprobe.evals.scorers.rules import LETTERS

    rows: dict[str, dict[str, str]] = {}
    for model, tasks in summary.get("position_bias", {}).items():
        for task, bias in tasks.items():
            shares = {LETTERS[place]: f"{100 * share:.0f}" for place, share in enumerate(bias["chosen"])}
            rows[f"{model}  {task}"] = {
                **shares,
                "recall std": f"{100 * bias['recall_std']:.0f}",
                "same in every order": f"{100 * bias['consistent']:.0f}",
                "n": f"{bias['n_items']} items, {bias['n_pairs']} orders",
            }
    if not rows:
        return []
    places = sorted({letter for row in rows.values() for letter in row if letter in LETTERS})
    columns = [*places, "recall std", "same in every order", "n"]
    return [
        "",
        "Multiple choice: % of the orders in which the chosen option stood at each place",
        *table_lines(rows, columns),
    ]
