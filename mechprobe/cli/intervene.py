"""``mechprobe intervene``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli import options
from mechprobe.cli.select import Features, Out, Ranking, RunFolder, next_step

if TYPE_CHECKING:
    from mechprobe.pipeline import Run

SelectionFolder = Annotated[
    Path | None,
    typer.Option(
        "--selection",
        metavar="DIR",
        help="Folder that `mechprobe select --out DIR` wrote, tested as it was made; by default selection/ of the run.",
    ),
]
Edits = Annotated[
    str | None,
    typer.Option("--edits-tuned", help="Edits of the tuned model, for example ablate,transplant,scale:0,0.5,2."),
]
EditsBase = Annotated[
    str | None,
    typer.Option("--edits-base", help="Edits of the base model, for example clamp:1,3,10,transplant or steer:2..8:4."),
]
NRandom = Annotated[
    int | None, typer.Option("--n-random", help="Matched random sets for every edit (with --task none by default).")
]
HarnessTask = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "-t",
        metavar="FILE.yaml|NAME",
        help="A task of lm-evaluation-harness, run instead of the run's own tasks; repeatable.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", help="With --task: documents of each task.")]
Fewshot = Annotated[int | None, typer.Option("--num-fewshot", help="With --task: examples before each question.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="With --task: requests at a time (32).")]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", help="With --task: ask with the tokenizer's chat template.")
]


def intervene(
    run: RunFolder = Path("runs/lab"),
    out: Out = None,
    selection: SelectionFolder = None,
    features: Features = None,
    ranking: Ranking = None,
    edits_tuned: Edits = None,
    edits_base: EditsBase = None,
    n_random: NRandom = None,
    task: HarnessTask = None,
    limit: Limit = None,
    num_fewshot: Fewshot = None,
    batch_size: BatchSize = None,
    chat_template: ChatTemplate = False,
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
    """Ablate and transplant in the tuned model, amplify and transplant in the base, with every control.

    With --task: the same edits on tasks of lm-evaluation-harness, on its own metrics.
    """
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import stage_of_run
    from mechprobe.cli.summary import intervention_lines
    from mechprobe.pipeline import INTERVENTIONS

    options_of_set = {"features": features, "ranking": ranking, "n_random": n_random}
    section = _section(options_of_set, {"edits_tuned": edits_tuned, "edits_base": edits_base})
    if selection is not None:
        section = _as_it_was_made(set_ or ()) | section
    chain = stage_of_run(
        run, config, set_, models=models, seed=seed, device=device, extra={"intervene": section}, force=force,
        trust=trust_remote_code,
    )  # fmt: skip
    asked = {"limit": limit, "num_fewshot": num_fewshot, "batch_size": batch_size}
    given = {key: value for key, value in asked.items() if value is not None}
    if task:
        given |= {"chat_template": chat_template} | ({} if n_random is None else {"n_random": n_random})
        _harness(chain, task, out, selection, given, as_json=as_json, dry_run=dry_run)
        return
    if given or chat_template:
        from mechprobe.errors import ConfigError

        name = next(iter(given), "chat_template").replace("_", "-")
        raise ConfigError(f"--{name} is for tasks of lm-evaluation-harness; give --task FILE.yaml or --task NAME too.")
    if dry_run:
        say(chain.intervention_plan(out, selection=selection))
        return
    results = chain.intervene(out, selection=selection)
    if as_json:
        say_json(results.data)
        return
    for line in intervention_lines(results.data):
        say(line)
    folder = out or run / INTERVENTIONS
    say(f"\nWritten to {folder}\n{next_step(run, folder, INTERVENTIONS, 'report')}")


def _section(values: dict[str, Any], edits: dict[str, str | None]) -> dict[str, Any]:
    """The settings that the options stand for."""
    from mechprobe.interventions.edits.edit import split_edits

    found = {key: value for key, value in values.items() if value is not None}
    return found | {key: split_edits(text) for key, text in edits.items() if text is not None}


def _as_it_was_made(overrides: Sequence[str]) -> dict[str, Any]:
    """Settings that leave a selection as it is, where the run's own settings may name another set; --set comes before them."""
    asked_for = {each.partition("=")[0].strip() for each in overrides}
    return {key: None for key in ("features", "ranking", "threshold") if f"intervene.{key}" not in asked_for}


def _harness(
    chain: "Run",
    tasks: list[str],
    out: Path | None,
    selection: Path | None,
    given: dict[str, Any],
    *,
    as_json: bool,
    dry_run: bool,
) -> None:
    from mechprobe.cli.printing import say, say_json, table_lines
    from mechprobe.evals.harness import HarnessConfig
    from mechprobe.interventions.harness import harness_table
    from mechprobe.pipeline import HARNESS
    from mechprobe.report.tables.interventions import silence_sentences

    settings = HarnessConfig(**given)
    if dry_run:
        say(chain.harness_plan(tasks, settings, out, selection=selection))
        return
    data = chain.harness(tasks, out, settings, selection=selection).data
    if as_json:
        say_json(data)
        return
    n = ", ".join(f"{name} {count}" for name, count in data["n"].items())
    say(
        f"lm-eval {data['lm_eval']} at {data['site']} ({data['rule_of_features']} by {data['ranking']}; documents: {n})"
    )
    columns, rows = harness_table(data)
    for line in [*table_lines(rows, columns), *silence_sentences(data)]:
        say(line)
    say(f"Note: {data['note']}")
    say(f"\nWritten to {out or chain.folder / HARNESS}\nNext: mechprobe intervene --run {chain.folder}")
