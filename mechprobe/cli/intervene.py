"""``mechprobe intervene``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli.select import Features, Out, Ranking
from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.pipeline.run import Run

SelectionFolder = Annotated[
    Path | None,
    typer.Option(
        "--selection",
        metavar="DIR",
        help="Selection to test: a folder that `mechprobe select --out DIR` wrote. By default selection/ of the run.",
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
    int | None, typer.Option("--n-random", help="Matched random sets for every edit. With --task, none by default.")
]
HarnessTask = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "-t",
        metavar="FILE.yaml|NAME",
        help="Task of lm-evaluation-harness, instead of the run's own tasks. May be repeated.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", help="With --task: documents of each task.")]
Fewshot = Annotated[int | None, typer.Option("--num-fewshot", help="With --task: examples before each question.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="With --task: requests at a time (32).")]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", help="With --task: ask with the tokenizer's chat template.")
]


@takes_shared_options
def intervene(
    shared: Shared,
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
) -> None:
    """Ablate, amplify and transplant the selected features during generation, with every control, and give a verdict.

    With --task, the same edits run on tasks of lm-evaluation-harness and scored by its own metrics.
    """
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, next_step, say_result
    from mechprobe.cli.summary import intervention_summary
    from mechprobe.pipeline.plans import plan_intervene

    options_of_set = {"features": features, "ranking": ranking, "n_random": n_random}
    section = _section(options_of_set, {"edits_tuned": edits_tuned, "edits_base": edits_base})
    if selection is not None:
        section = _keep_selection(shared.set_ or ()) | section
    harness, interventions = (out, None) if task else (None, out)
    run = shared.start(
        {"intervene": section} if section else None, selection=selection, harness=harness, interventions=interventions
    )
    asked = {"limit": limit, "num_fewshot": num_fewshot, "batch_size": batch_size}
    given = {key: value for key, value in asked.items() if value is not None}
    if task:
        given |= {"chat_template": chat_template} | ({} if n_random is None else {"n_random": n_random})
        _harness(shared, run, task, given)
        return
    if given or chat_template:
        from mechprobe.errors import ConfigError

        name = next(iter(given), "chat_template").replace("_", "-")
        raise ConfigError(f"--{name} is for tasks of lm-evaluation-harness; give --task FILE.yaml or --task NAME too.")
    folder = run.layout.interventions
    results = carry_out(shared, run, "intervene", folder=folder, plan=lambda: plan_intervene(run), work=run.intervene)
    if results is None:
        return
    if shared.as_json:
        say_json(results.to_dict())
        return
    data = results.to_dict()
    lines = intervention_summary(data, verbose=shared.verbose)
    say_result(lines, folder, next_step(run, folder, "interventions", "report"), run=run)


def _section(values: dict[str, Any], edits: dict[str, str | None]) -> dict[str, Any]:
    """The settings that the options give."""
    from mechprobe.interventions.edits.edit import split_edits

    found = {key: value for key, value in values.items() if value is not None}
    return found | {key: split_edits(text) for key, text in edits.items() if text is not None}


def _keep_selection(overrides: Sequence[str]) -> dict[str, Any]:
    """Settings that keep the features of ``--selection``, although the run's settings may name another set.

    A setting in ``overrides``, which come from ``--set``, stays.
    """
    overridden = {each.partition("=")[0].strip() for each in overrides}
    return {key: None for key in ("features", "ranking", "threshold") if f"intervene.{key}" not in overridden}


def _harness(shared: Shared, run: "Run", tasks: list[str], given: dict[str, Any]) -> None:
    from mechprobe.cli.printing import say_json, table_lines
    from mechprobe.cli.stage_command import carry_out, in_run, say_result
    from mechprobe.evals.config import HarnessConfig
    from mechprobe.interventions.harness.result import harness_table, truncated_sentence
    from mechprobe.pipeline.plans import plan_harness
    from mechprobe.report.tables.interventions import readout_sentence
    from mechprobe.selection.never_active import never_active_sentences

    think = run.config.tasks.think
    settings, folder = HarnessConfig(**given, think_end=think[1] if think else ""), run.layout.harness
    found = carry_out(
        shared, run, "intervene", folder=folder, plan=lambda: plan_harness(run, tasks, settings),
        work=lambda: run.harness(tasks, settings),
    )  # fmt: skip
    if found is None:
        return
    data = found.to_dict()
    if shared.as_json:
        say_json(data)
        return
    n = ", ".join(f"{name} {count}" for name, count in data["n"].items())
    columns, rows = harness_table(found)
    lines = [
        f"lm-eval {data['lm_eval']} at {data['site']} ({data['rule_of_features']} by {data['ranking']}; documents: {n})",
        *table_lines(rows, columns),
        *filter(None, [truncated_sentence(found.truncated, found.n), readout_sentence(data)]),
        *never_active_sentences(data),
        f"Note: {data['note']}",
    ]
    say_result(lines, folder, f"mechprobe intervene{in_run(run)}", run=run)
