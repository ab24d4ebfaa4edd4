"""The ``evaluate`` stage: what every model does on every sample of every task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechprobe.errors import InputError
from mechprobe.evals.answering import asked_prompts, option_pairs, run_tasks
from mechprobe.evals.config import EvaluateConfig
from mechprobe.evals.position_bias import position_bias
from mechprobe.evals.scorers.scorer import Scorer
from mechprobe.evals.tasks import Task
from mechprobe.files import dump_json, sha256_bytes, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.progress import Advance, progress
from mechprobe.records import Outcome, Outcomes, Sample, read_jsonl, read_outcomes, write_jsonl
from mechprobe.stage_folder import Stage, read_manifest
from mechprobe.statistics import holm, mcnemar_exact, wilson_interval

OUTCOMES_FILE = "outcomes.jsonl"
SAMPLES_FILE = "samples.jsonl"
SUMMARY_FILE = "summary.json"
FORCED = "{model}+prefix"

Accuracy = dict[str, list[float | int]]
"""Task → ``[accuracy, low, high, n]``, Wilson 95 %."""


def tasks_fingerprint(tasks: Sequence[Task]) -> str:
    """sha256 of every sample, scorer and length limit: what the outcomes depend on beside the models."""
    rows = [
        [task.name, _scoring(task), task.max_new_tokens, [list(_fields(s)) for s in task.samples]] for task in tasks
    ]
    return sha256_bytes(dump_json(rows).encode())


def _scoring(task: Task) -> Any:
    judge = task.scorer
    return judge.identity if isinstance(judge, Scorer) else judge.identity([sample.id for sample in task.samples])


def _fields(sample: Any) -> tuple[str, str, str, str]:
    return sample.id, sample.task, sample.prompt, sample.answer


def check_lengths(family: ModelFamily, tasks: Sequence[Task], *, prefix: str = "") -> None:
    """Raise `InputError` for a prompt that, with its longest response, does not fit every model; before any work."""
    tokenizer, context = family.tokenizer, family.max_context
    extra = len(tokenizer(prefix, add_special_tokens=False).input_ids) if prefix else 0
    for task in tasks:
        room = context if task.by_likelihood else context - task.max_new_tokens - extra
        for sample in task.samples:
            length = _longest(task, sample, tokenizer, prefix)
            if 0 < length <= room:
                continue
            what = f"Sample {sample.id} of {task.name} has {length} tokens"
            if task.by_likelihood:
                raise InputError(f"{what} with its longest option; the context is {context}: shorten it.")
            raise InputError(
                f"{what}; with {task.max_new_tokens} new ones the "
                f"context of {context} leaves {room}: shorten it, or lower max_new_tokens."
            )


def _longest(task: Task, sample: Sample, tokenizer: Any, prefix: str) -> int:
    """Tokens of the longest prompt of a sample, with prefix and option where options are judged; 0 for an empty prompt."""
    if not task.by_likelihood:
        return max(len(tokenizer(prompt).input_ids) for prompt in asked_prompts(task, sample))
    pairs = [pair for options in option_pairs(task, sample, tokenizer, prefix=prefix) for pair in options]
    return max(len(context) + len(rest) for context, rest in pairs) if all(context for context, _ in pairs) else 0


def evaluate_outcomes(
    family: ModelFamily,
    tasks: Sequence[Task],
    out: Path | str,
    config: EvaluateConfig | None = None,
    *,
    force: bool = False,
) -> Outcomes:
    """Generate and score every sample with every model; an interrupted run goes on with the next model.

    Writes ``outcomes.jsonl``, ``summary.json`` and the manifest into ``out``. With ``force_prefix`` the outcomes
    also hold the base model made to begin so, under the name ``base+prefix``.

    Raises:
        InputError: A prompt does not fit the context.
        ArtifactError: ``out`` holds other work.
    """
    config = config or EvaluateConfig()
    tasks = [task.take(config.n_per_task) for task in tasks]
    check_lengths(family, tasks, prefix=config.force_prefix)
    identity = {**config.model_dump(mode="json"), "tasks": tasks_fingerprint(tasks), **family.reduced_dtypes}
    with Stage.open(
        out, name="evaluate", config=identity, models=family.fingerprints, force=force, remake="refused"
    ) as stage:
        if not stage.done:
            outcomes = _run_models(family, tasks, stage.folder, config)
            write_jsonl(stage.folder / OUTCOMES_FILE, outcomes.records)
            write_jsonl(stage.folder / SAMPLES_FILE, [sample for task in tasks for sample in task.samples])
            summary = summarize(outcomes, config)
            bias = position_bias(outcomes, tasks)
            if bias:
                summary["position_bias"] = bias
            write_json(stage.folder / SUMMARY_FILE, summary)
            stage.finish(
                outputs=[OUTCOMES_FILE, SAMPLES_FILE, SUMMARY_FILE],
                counts={"samples": {task.name: len(task.samples) for task in tasks}},
                results=summary,
            )
            for part in stage.folder.glob("part-*.jsonl"):
                part.unlink()
    return load_outcomes(out)


def load_outcomes(folder: Path | str) -> Outcomes:
    """Outcomes of a finished ``evaluate`` stage."""
    read_manifest(folder)
    samples = [Sample(**item) for _, item in read_jsonl(Path(folder) / SAMPLES_FILE)]
    return Outcomes(read_outcomes(Path(folder) / OUTCOMES_FILE), samples)


def _run_models(family: ModelFamily, tasks: Sequence[Task], folder: Path, config: EvaluateConfig) -> Outcomes:
    runs = [(model, model.name, "") for model in family]
    if config.force_prefix:
        runs.append((family[config.base], FORCED.format(model=config.base), config.force_prefix))
    records: list[Outcome] = []
    with progress(len(runs), "evaluating", unit="models") as advance:
        for index, (model, label, prefix) in enumerate(runs):
            records += _one_model(model, label, prefix, tasks, folder / f"part-{index:03d}.jsonl", config)
            _note(advance, label, records)
    return Outcomes(records)


def _one_model(
    model: LanguageModel, label: str, prefix: str, tasks: Sequence[Task], part: Path, config: EvaluateConfig
) -> list[Outcome]:
    if part.is_file():
        return read_outcomes(part)
    outcomes = run_tasks(model, tasks, label=label, batch_size=config.batch_size, prefix=prefix)
    write_jsonl(part, outcomes)
    return outcomes


def _note(advance: Advance, label: str, records: Sequence[Outcome]) -> None:
    mine = [record.outcome == "right" for record in records if record.model == label]
    advance(1, model=label, right=f"{100 * sum(mine) / max(1, len(mine)):.0f} %")


def accuracy_of(outcomes: Sequence[Outcome]) -> Accuracy:
    """Accuracy per task of one model's outcomes."""
    right: dict[str, list[bool]] = {}
    for outcome in outcomes:
        right.setdefault(outcome.task, []).append(outcome.outcome == "right")
    return {task: list(wilson_interval(sum(values), len(values))) for task, values in right.items()}


def summarize(outcomes: Outcomes, config: EvaluateConfig) -> dict[str, Any]:
    """Accuracies, share of unparsed responses, the forced-prefix baseline, and McNemar tests against the base.

    p-values are exact McNemar, Holm-adjusted over the tasks of each model.
    """
    forced = FORCED.format(model=config.base)
    accuracy = {
        model: accuracy_of([record for record in outcomes.records if record.model == model])
        for model in outcomes.models
    }
    unparsed = {
        model: {task: _share(outcomes, model, task, "unparsed") for task in outcomes.tasks} for model in outcomes.models
    }
    prefix = None
    if config.force_prefix:
        prefix = {"prefix": config.force_prefix, "model": config.base, "accuracy": accuracy.pop(forced)}
        unparsed.pop(forced)
    tuned = [model for model in accuracy if model != config.base]
    tests = {model: _against_base(outcomes, model, config.base) for model in tuned if config.base in accuracy}
    return {
        "tasks": outcomes.tasks,
        "accuracy": accuracy,
        "unparsed": unparsed,
        "force_prefix": prefix,
        "mcnemar": tests,
    }


def _share(outcomes: Outcomes, model: str, task: str, kind: str) -> float:
    mine = [record.outcome == kind for record in outcomes.records if record.model == model and record.task == task]
    return sum(mine) / len(mine)


def _against_base(outcomes: Outcomes, model: str, base: str) -> Mapping[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    for task in outcomes.tasks:
        before, after = outcomes.right(base, task), outcomes.right(model, task)
        rows[task] = {
            "gained": sum(b < a for b, a in zip(before, after, strict=True)),
            "lost": sum(b > a for b, a in zip(before, after, strict=True)),
            "n": len(before),
            "p": mcnemar_exact(before, after),
        }
    for task, adjusted in zip(rows, holm([row["p"] for row in rows.values()]), strict=True):
        rows[task]["p_holm"] = adjusted
    return rows
