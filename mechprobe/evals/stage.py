"""The evaluate stage: the outcome of every model on every sample of every task."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from mechprobe.errors import InputError
from mechprobe.evals.answering import option_pairs, prompts_of, run_tasks
from mechprobe.evals.config import EvaluateConfig
from mechprobe.evals.result import Engine
from mechprobe.evals.scorers.rules import Scorer
from mechprobe.evals.summary import FORCED, summarize
from mechprobe.evals.tasks import Task
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.formatting import percent
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.progress import progress
from mechprobe.records import Outcome, Outcomes, Sample, read_jsonl, read_outcomes, write_jsonl
from mechprobe.stage_folder import Stage, read_manifest

if TYPE_CHECKING:
    from mechprobe.evals.rollouts.answers import Answers

OUTCOMES_FILE = "outcomes.jsonl"
SAMPLES_FILE = "samples.jsonl"
SUMMARY_FILE = "summary.json"
JOURNAL_FILE = "answers.jsonl"


def tasks_fingerprint(tasks: Sequence[Task]) -> str:
    """sha256 of samples, scorers, length limits, stop texts, thinking tags and sampling: all that outcomes depend on besides models."""
    rows = []
    for task in tasks:
        judge, samples = task.scorer, task.samples
        scorer = judge.identity if isinstance(judge, Scorer) else judge.identity([sample.id for sample in samples])
        decoding = [task.max_new_tokens, list(task.stop), task.think and list(task.think)]
        if not (task.sampling.greedy or task.by_likelihood):
            decoding.append(task.sampling.model_dump(mode="json"))
        rows.append([task.name, scorer, decoding, [[s.id, s.task, s.prompt, s.answer] for s in samples]])
    return sha256_bytes(dump_json(rows).encode())


def check_lengths(family: ModelFamily, tasks: Sequence[Task], *, prefix: str = "") -> None:
    """Check before any forward pass that every prompt and its longest response fit the context of every model.

    Responses begin with ``prefix``.

    Raises:
        InputError: A sample does not fit; the message names it.
    """
    tokenizer, context = family.tokenizer, family.max_context
    n_prefix = len(tokenizer(prefix, add_special_tokens=False).input_ids) if prefix else 0
    for task in tasks:
        longest = context if task.by_likelihood else context - task.max_new_tokens - n_prefix
        for sample in task.samples:
            length = _longest(task, sample, tokenizer, prefix)
            if not 0 < length <= longest:
                raise InputError(_misfit(task, sample, length, context, longest))


def _misfit(task: Task, sample: Sample, length: int, context: int, longest: int) -> str:
    found = f"Sample {sample.id} of task {task.name} has {length} tokens"
    if length == 0:
        return f"{found} in its prompt; give it a prompt, or a tokenizer that adds a BOS token."
    if task.by_likelihood:
        return f"{found} with its longest option, but the context holds {context}; shorten the sample."
    return (
        f"{found}, but with {task.max_new_tokens} new tokens the context of {context} leaves {longest}; "
        "shorten the sample or lower tasks.max_new_tokens."
    )


def _longest(task: Task, sample: Sample, tokenizer: PreTrainedTokenizerBase, prefix: str) -> int:
    """Number of tokens of a sample's longest prompt, with prefix and option if options are scored; 0 if one is empty."""
    if not task.by_likelihood:
        return max(len(tokenizer(prompt).input_ids) for prompt in prompts_of(task, sample))
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
    """Evaluate every model on every sample. An interrupted stage resumes at the next model.

    Writes ``outcomes.jsonl``, ``samples.jsonl``, ``summary.json`` (`mechprobe.evals.result.EvaluationSummary`) and the
    manifest. With ``force_prefix`` the outcomes also contain the base with the forced prefix, as model ``base+prefix``.

    Args:
        family: The models.
        tasks: The tasks; ``n_per_task`` of the config keeps the first samples of each.
        out: Stage folder.
        config: Settings.
        force: Repeat a finished stage.

    Raises:
        InputError: A prompt does not fit the context, or rollouts are unusable.
        ConfigError: A task cannot be answered by another engine.
        EndpointError: The server cannot be reached, or fails.
        ArtifactError: ``out`` holds other work.
    """
    config = config or EvaluateConfig()
    known, tasks = tasks, [task.take(config.n_per_task) for task in tasks]
    check_lengths(family, tasks, prefix=config.force_prefix)
    runs = _runs(family, config)
    answers = _imported(family, tasks, known, runs, config)
    settings = config.model_dump(mode="json", exclude={"imports", "endpoint"})
    identity = {**settings, "tasks": tasks_fingerprint(tasks), **family.reduced_dtypes}
    inputs = {f"rollouts {number}": path for number, path in enumerate(config.imports)}
    with Stage.open(
        out, name="evaluate", config=identity, inputs=inputs, models=family.fingerprints, force=force, remake="refused"
    ) as stage:
        if not stage.done:
            if config.generation == "endpoint":
                answers = _asked(family, tasks, runs, stage.folder, config)
            outcomes = _run_models(runs, tasks, stage.folder, config, answers)
            write_jsonl(stage.folder / OUTCOMES_FILE, outcomes.records)
            write_jsonl(stage.folder / SAMPLES_FILE, [sample for task in tasks for sample in task.samples])
            summary = summarize(outcomes, tasks, config, engine=answers.engine if answers else None)
            summary.save(stage.folder / SUMMARY_FILE)
            stage.finish(
                outputs=[OUTCOMES_FILE, SAMPLES_FILE, SUMMARY_FILE],
                counts={"samples": {task.name: len(task.samples) for task in tasks}},
                results=summary.to_dict(),
            )
            for part in (*stage.folder.glob("part-*.jsonl"), stage.folder / JOURNAL_FILE):
                part.unlink(missing_ok=True)
    return load_outcomes(out)


def load_outcomes(folder: Path | str) -> Outcomes:
    """Read the outcomes and samples of an evaluate stage; `ArtifactError` if it is not finished."""
    engine = read_manifest(folder).get("results", {}).get("engine")
    samples = [Sample(**item) for _, item in read_jsonl(Path(folder) / SAMPLES_FILE)]
    sentence = Engine(**engine).sentence if engine else ""
    return Outcomes(read_outcomes(Path(folder) / OUTCOMES_FILE), samples, engine=sentence)


_RunOf = tuple[LanguageModel, str, str]
"""A model, its name in the outcomes, and the prefix that is forced on it."""


def _runs(family: ModelFamily, config: EvaluateConfig) -> list[_RunOf]:
    runs: list[_RunOf] = [(model, model.name, "") for model in family]
    if config.force_prefix:
        runs.append((family[config.base], FORCED.format(model=config.base), config.force_prefix))
    return runs


def _imported(
    family: ModelFamily, tasks: Sequence[Task], known: Sequence[Task], runs: Sequence[_RunOf], config: EvaluateConfig
) -> "Answers | None":
    """The answers in the files of rollouts; None where there are none."""
    if config.generation == "hf":
        return None
    from mechprobe.evals.rollouts.answers import require_responses
    from mechprobe.evals.rollouts.imported import read_rollouts

    require_responses(tasks, config.generation)
    labels = {label: prefix for _, label, prefix in runs}
    return read_rollouts(config.imports, family, tasks, known, labels) if config.imports else None


def _asked(
    family: ModelFamily, tasks: Sequence[Task], runs: Sequence[_RunOf], folder: Path, config: EvaluateConfig
) -> "Answers":
    """The answers of the server."""
    from mechprobe.evals.rollouts.endpoint import ask_endpoint

    named = [(model.name, label, prefix) for model, label, prefix in runs]
    return ask_endpoint(config.endpoint, family, tasks, named, folder / JOURNAL_FILE)


def _run_models(
    runs: Sequence[_RunOf], tasks: Sequence[Task], folder: Path, config: EvaluateConfig, answers: "Answers | None"
) -> Outcomes:
    respond = answers.respond if answers else None
    records: list[Outcome] = []
    with progress(len(runs), "evaluating", unit="models") as advance:
        for index, (model, label, prefix) in enumerate(runs):
            part = folder / f"part-{index:03d}.jsonl"
            if part.is_file():  # written by an interrupted stage
                found = read_outcomes(part)
            else:
                options = {"batch_size": config.batch_size, "prefix": prefix, "respond": respond}
                found = run_tasks(model, tasks, label=label, **options)
                write_jsonl(part, found)
            records += found
            right = sum(record.outcome == "right" for record in found)
            advance(1, model=label, right=f"{percent(right / max(1, len(found)))} %")
    return Outcomes(records)
