"""``mechprobe logprobs``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.dynamics.logprobs.result import LogprobsResult
    from mechprobe.statistics import Interval

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Traces = Annotated[
    Path | None,
    typer.Option(
        "--traces", help="File of prompts with responses, instead of the responses of the run's evaluate stage."
    ),
]
Evals = Annotated[Path | None, typer.Option("--evals", help="Finished evaluate stage, instead of the run's.")]
Checkpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of further models, <arm>/step_<n>/ (rl/step_000040/).")
]
_MOST_MODELS, _MOST_CLASSES, _MOST_ORDER, _MOST_ARMS = 13, 5, 6, 4


@takes_shared_options
def logprobs(
    shared: Shared, out: Out = None, traces: Traces = None, evals: Evals = None, checkpoints: Checkpoints = None
) -> None:
    """Score the tokens of fixed traces under every checkpoint, by class of token, against base, controls and a teacher."""
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, say_result
    from mechprobe.emergence.arms import with_checkpoints
    from mechprobe.environment import require
    from mechprobe.pipeline.plans import Plan
    from mechprobe.stage_folder import require_stage

    require("matplotlib", "The figure of log-probabilities")
    section: dict[str, Any] = {"traces": {"file": str(traces)}} if traces else {}
    section |= {"checkpoints": str(checkpoints)} if checkpoints else {}
    run = shared.start({"logprobs": section} if section else {}, logprobs=out, evals=evals)
    models = with_checkpoints(run.config.models, run.config.logprobs.checkpoints)
    run.config = run.config.model_copy(update={"models": models})
    if evals is not None and run.config.logprobs.traces.file:
        require_stage(evals, "evaluate")  # no stage that is made first reads it
    folder = run.layout.logprobs
    found: LogprobsResult | None = carry_out(
        shared,
        run,
        "logprobs",
        folder=folder,
        plan=lambda: Plan("logprobs", folder, *run.plan_logprobs()),
        work=run.logprobs,
    )
    if found is None:
        return
    if shared.as_json:
        say_json({"folder": str(folder), **found.to_dict()})
        return
    say_result(logprobs_lines(found), folder)


def logprobs_lines(found: "LogprobsResult") -> list[str]:
    """Δ of every model by class, contrasts of the arms, the order of learning, and backtracking; at most 40 lines."""
    from mechprobe.cli.printing import table_lines

    source = found.sources[-1]
    models = [name for name in found.models if name != found.base]
    shown = models if len(models) <= _MOST_MODELS else [models[0], *models[-_MOST_MODELS + 1 :]]
    prompts = max((row.n_prompts for row in found.find(source=source, metric="log_prob")), default=0)
    others = [name for name in found.sources if name != source]
    return [
        f"Mean Δ log p against {found.base} in nats per token on {found.n_tokens:,} tokens; traces of {source}, {prompts:,} prompts, 95 % interval",
        *table_lines(
            {name: _row(found, name, source) for name in shown},
            ["all tokens", *_classes(found, source), "rank 1", "words/1k"],
        ),
        *([f"... and {len(models) - len(shown)} more models in logprobs.json"] if len(shown) < len(models) else []),
        *([f"Traces of {', '.join(others)} are in logprobs.json too"] if others else []),
        *_teacher_lines(found, shown, source),
        *_contrast_lines(found, source),
        *_order_lines(found, source),
        *(
            f"Backtracking in {verdict.arm}: {verdict.label} ({verdict.reason})"
            for verdict in found.verdicts[:_MOST_ARMS]
        ),
        *(
            f"Sampler of {row.model} at temperature {row.temperature:g}: largest difference {row.largest:.2g} over {row.n:,} tokens"
            for row in found.sampler[:3]
        ),
        *found.notes[:4],
    ]


def _classes(found: "LogprobsResult", source: str) -> list[str]:
    """The classes that have tokens in the source, those of the lists and the answer first."""
    own = {row.group for row in found.find(source=source, by="class", metric="log_prob")}
    return [name for name in found.classes if name in own][:_MOST_CLASSES]


def _row(found: "LogprobsResult", model: str, source: str) -> dict[str, str]:
    from mechprobe.formatting import decimal, estimate, percent

    cells = {"all tokens": estimate(_delta(found, model, source, "all", "all"), signed=True)}
    cells |= {name: decimal(_delta(found, model, source, "class", name)[0], 3) for name in _classes(found, source)}
    top = found.find(model=model, source=source, metric="rank_1")[0]
    words = next((row.per_1k.value for row in found.backtracking if row.model == model), float("nan"))
    return {**cells, "rank 1": f"{percent(top.value, 1)} %", "words/1k": decimal(words, 1)}


def _delta(found: "LogprobsResult", model: str, source: str, by: str, group: str) -> "Interval":
    from mechprobe.statistics import Interval

    rows = found.find(model=model, source=source, metric="delta", reference="base", by=by, group=group)
    return rows[0].interval if rows else Interval(float("nan"), float("nan"), float("nan"), 0)


def _teacher_lines(found: "LogprobsResult", models: list[str], source: str) -> list[str]:
    """Δ and r against the teacher of base and the last models; bits per byte where tokens cannot be compared."""
    from mechprobe.formatting import estimate

    if not found.teacher:
        return []
    lines = []
    for model in [found.base, *models][-3:]:
        rows = {row.metric: row for row in found.find(model=model, source=source, reference="teacher")}
        own = found.find(model=model, source=source, metric="bits_per_byte", reference="")
        if "delta" in rows:
            lines.append(
                f"{model} against the teacher: Δ {estimate(rows['delta'].interval, signed=True)}, "
                f"clipped {100 * rows['clip_low'].value:.1f} % low and {100 * rows['clip_high'].value:.1f} % high"
            )
        elif own and "bits_per_byte" in rows:
            lines.append(
                f"{model}: {estimate(own[0].interval)} bits per byte, the teacher {estimate(rows['bits_per_byte'].interval)}"
            )
    return lines


def _contrast_lines(found: "LogprobsResult", source: str) -> list[str]:
    """The difference in differences of the listed classes between the last models of the arms."""
    from mechprobe.formatting import estimate

    rows = [row for row in found.contrasts if row.source == source and row.group in _classes(found, source)]
    return [
        f"{row.group}, {row.first} − {row.second} over matched controls: {estimate(row.contrast, signed=True)} "
        f"({row.n:,} tokens, {100 * row.matched:.0f} % matched with {row.n_controls:,})"
        for row in rows[:_MOST_ORDER]
    ]


def _order_lines(found: "LogprobsResult", source: str) -> list[str]:
    """One line for each arm: the checkpoints between which every class reaches half of its final Δ, and the shown order."""
    lines = []
    for arm in found.arms:
        rows = [row for row in found.learning if (row.arm, row.source) == (arm, source) and row.group != "all"]
        told = [(row.half_step.low, row.half_step.high, row.group) for row in rows if row.half_step is not None]
        if not told:
            continue
        unit = "steps" if rows[0].spaced_by == "steps" else "checkpoints"
        parts = [f"{group} [{low:g}, {high:g}]" for low, high, group in sorted(told)]
        order = _shown_order(found, arm, source) if len(told) > 1 else ""
        lines.append(f"Half of the final Δ in {arm} is reached between {unit}: {', '.join(parts)}{order}")
    return lines[:_MOST_ARMS]


def _shown_order(found: "LogprobsResult", arm: str, source: str) -> str:
    """Which classes are shown to come before which."""
    before: dict[str, list[str]] = {}
    for pair in found.order:
        if (pair.arm, pair.source) == (arm, source) and pair.first_moved:
            later = pair.second if pair.first_moved == pair.first else pair.first
            before.setdefault(pair.first_moved, []).append(later)
    said = [f"{first} comes before {', '.join(later)}" for first, later in before.items()]
    return f"; {'; '.join(said) or 'the order cannot be told'}"
