"""The evaluate stage: the outcome of every model on every sample of every task."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import PromptEncoder
from mechprobe.environment import require
from mechprobe.errors import ConfigError, InputError
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
from mechprobe.ranks import once
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
        asked = [[s.id, s.task, s.prompt, s.answer, *([] if s.messages is None else [s.messages])] for s in samples]
        rows.append([task.name, scorer, decoding, asked, *task.text.identity.values()])
    return sha256_bytes(dump_json(rows).encode())


def check_lengths(family: ModelFamily, tasks: Sequence[Task], *, prefix: str = "") -> None:
    """Check before any forward pass that every prompt and its longest response fit the context of every model.

    Responses begin with ``prefix``.

    Raises:
        InputError: A sample does not fit; the message names it.
        ModelError: A model lacks a token of a prompt, or its tokenizer splits it differently.
    """
    context = family.max_context
    for task in tasks:
        encoder = PromptEncoder.of(family.tokenizers, task.text)
        longest = context if task.by_likelihood else context - task.max_new_tokens - len(encoder.encode_text(prefix))
        for sample in task.samples:
            length = _longest(task, sample, encoder, prefix)
            if length > longest:
                raise InputError(_misfit(task, sample, length, context, longest))
        prompts = (prompt for sample in task.samples for prompt in prompts_of(task, sample))
        family.check_ids(encoder.tokenizer, prompts, encoder.encode_with)


def _misfit(task: Task, sample: Sample, length: int, context: int, longest: int) -> str:
    found = f"Sample {sample.id} of task {task.name} has {length} tokens"
    if task.by_likelihood:
        return f"{found} with its longest option, but the context holds {context}; shorten the sample."
    return (
        f"{found}, but with {task.max_new_tokens} new tokens the context of {context} leaves {longest}; "
        "shorten the sample or lower tasks.max_new_tokens."
    )


def _longest(task: Task, sample: Sample, encoder: PromptEncoder, prefix: str) -> int:
    """Number of tokens of a sample's longest prompt, with prefix and option if options are scored."""
    prompts = prompts_of(task, sample)
    if not task.by_likelihood:
        return max(len(encoder.encode(prompt)) for prompt in prompts)
    if task.think and any(encoder.opens_thinking(prompt, task.think) for prompt in prompts):
        raise InputError(
            f"Sample {sample.id} of task {task.name} would have its options scored inside the thinking block that the prompt "
            "opens; set text.enable_thinking=false, or score generated letters with tasks.scorer=letter."
        )
    pairs = [pair for options in option_pairs(task, sample, encoder, prefix=prefix) for pair in options]
    return max(len(context) + len(rest) for context, rest in pairs)


def text_of(tasks: Sequence[Task]) -> TextConfig:
    """The text rule that tasks share.

    Raises:
        ConfigError: They have different ones.
    """
    first = tasks[0].text if tasks else TextConfig()
    other = next((task for task in tasks if task.text != first), None)
    if other is not None:
        raise ConfigError(f"The tasks {tasks[0].name} and {other.name} have different text rules; give all tasks one.")
    return first


def text_identity(family: ModelFamily, tasks: Sequence[Task]) -> dict[str, object]:
    """What the token ids of the tasks' prompts depend on besides the prompts; empty for the default rule."""
    return PromptEncoder.of(family.tokenizers, text_of(tasks)).identity


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
    answers, runs = _imported(family, known, config), _runs(family, config)
    identity = {
        **config.model_dump(mode="json", exclude={"imports", "endpoint", "batch_size"}),
        "tasks": tasks_fingerprint(tasks),
        **text_identity(family, tasks),
        **family.identity,
    }
    inputs = {f"rollouts {number}": path for number, path in enumerate(config.imports)}
    with Stage.open(
        out, name="evaluate", config=identity, inputs=inputs, models=family.fingerprints, force=force, remake="refused"
    ) as stage:
        if not stage.done:
            if config.generation == "endpoint":
                answers = once(lambda: _asked(family, tasks, runs, stage.folder, config))
            outcomes = _run_models(runs, tasks, stage.folder, config, answers)
            write_jsonl(stage.folder / OUTCOMES_FILE, outcomes.records)
            write_jsonl(stage.folder / SAMPLES_FILE, [sample.to_json() for task in tasks for sample in task.samples])
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
    manifest = read_manifest(folder)
    text, engine = manifest["config"].get("text"), manifest.get("results", {}).get("engine")
    samples = [Sample.from_json(item) for _, item in read_jsonl(Path(folder) / SAMPLES_FILE)]
    sentence = Engine(**engine).sentence if engine else ""
    return Outcomes(read_outcomes(Path(folder) / OUTCOMES_FILE), samples, text, engine=sentence)


_RunOf = tuple[LanguageModel, str, str]
"""A model, its name in the outcomes, and the prefix that is forced on it."""


def _runs(family: ModelFamily, config: EvaluateConfig) -> list[_RunOf]:
    runs: list[_RunOf] = [(model, model.name, "") for model in family]
    if config.force_prefix:
        runs.append((family[config.base], FORCED.format(model=config.base), config.force_prefix))
    return runs


def check_source(family: ModelFamily, tasks: Sequence[Task], config: EvaluateConfig) -> None:
    """Check before any work that responses can come from where ``config.generation`` says; ``tasks`` have all samples.

    Raises:
        ConfigError: A task compares log-likelihoods, which no other engine gives, or the key of the server is not set.
        InputError: A file of rollouts is unusable.
    """
    _imported(family, tasks, config)
    if config.generation == "endpoint":
        require("httpx2", "An inference server")
        from mechprobe.evals.rollouts.client import key_of

        key_of(config.endpoint)


def _imported(family: ModelFamily, tasks: Sequence[Task], config: EvaluateConfig) -> "Answers | None":
    """The responses in the files of rollouts; None for other sources. Errors are those of `check_source`."""
    if config.generation == "hf":
        return None
    from mechprobe.evals.rollouts.answers import require_responses
    from mechprobe.evals.rollouts.imported import read_rollouts

    require_responses(tasks, config.generation)
    if not config.imports:
        return None
    labels = {label: prefix for _, label, prefix in _runs(family, config)}
    return read_rollouts(config.imports, family, [task.take(config.n_per_task) for task in tasks], tasks, labels)


def _asked(
    family: ModelFamily, tasks: Sequence[Task], runs: Sequence[_RunOf], folder: Path, config: EvaluateConfig
) -> "Answers":
    """The answers of the server."""
    require("httpx2", "An inference server")
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
                found, count = read_outcomes(part), advance.found
            else:
                count = advance
                options = {"batch_size": config.batch_size, "prefix": prefix, "respond": respond}
                found = run_tasks(model, tasks, label=label, **options)
                write_jsonl(part, found)
            records += found
            right = sum(record.outcome == "right" for record in found)
            count(1, model=label, right=f"{percent(right / max(1, len(found)))} %")
    return Outcomes(records)
