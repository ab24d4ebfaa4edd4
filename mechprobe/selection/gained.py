"""G_t, the samples of a task that the base model gets wrong and the tuned model gets right, and their tokens.

Where responses were sampled, the shares of right responses decide (`mechprobe.records.Outcomes.gained`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import PromptEncoder
from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.errors import ConfigError, SelectionError
from mechprobe.evals.answering import prompt_of
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.rules import depends_on_tasks


@dataclass(frozen=True)
class Gained:
    """G_t of every selection task (arXiv 2604.25011), without held-out samples.

    Attributes:
        ids: Task → samples that are read, at most ``max_samples`` of each.
        sizes: Task → size of its G_t, for tasks that select.
        too_few: Task → size of its G_t, for tasks below ``min_gained``, which do not select.
        note: Which samples are read instead where no task has enough; empty otherwise.
    """

    ids: dict[str, list[str]]
    sizes: dict[str, int]
    too_few: dict[str, int]
    note: str = ""


def gained_samples(outcomes: Outcomes, config: SelectConfig, held_out: Mapping[str, Sequence[str]]) -> Gained:
    """G_t of every selection task.

    Args:
        outcomes: Outcomes of base and tuned.
        config: Names of the models and tasks, and sizes.
        held_out: Task → samples that must not select.

    Raises:
        ConfigError: A model or a task has no outcomes, or post-training saw a task that is to select.
        SelectionError: No task has enough gained samples, and features are to be chosen or attributed by their values on them.
    """
    for model in (config.base, config.tuned):
        if model not in outcomes.models:
            raise ConfigError(f"There are no outcomes of model '{model}'; evaluate it first.")
    found = Gained({}, {}, {})
    needed, counts = max(1, config.min_gained), []
    for task in _selection_tasks(outcomes, config):
        barred = set(held_out.get(task, ()))
        gained = [k for k in _gained(outcomes, task, config) if k not in barred]
        if len(gained) >= needed:
            found.ids[task], found.sizes[task] = gained[: config.max_samples], len(gained)
        else:
            found.too_few[task] = len(gained)
            ids = [k for k in outcomes.sample_ids(task) if k not in barred]
            base, tuned = (f"{sum(outcomes.share_right(m, task, ids)):.3g}" for m in (config.base, config.tuned))
            counts.append(
                f"{task}: {len(gained)} gained; {config.base} has {base} and {config.tuned} {tuned} of {len(ids)} right"
            )
    if found.ids:
        return found
    named = not depends_on_tasks(config.rule)
    if named and not ({config.ranked_by, *config.also} & {"ig", "relie"}):
        return _ungained(outcomes, config, held_out, found.too_few)
    way_out = (
        ", or rank by joint or score" if named else ', or name the features: mechprobe select --features "ids:1,2,3"'
    )
    raise SelectionError(
        f"On no task does {config.tuned} get at least {needed} samples right that {config.base} gets wrong "
        f"({'; '.join(counts)}); check tasks.scorer, evaluate more samples, lower select.min_gained{way_out}."
    )


def _gained(outcomes: Outcomes, task: str, config: SelectConfig) -> list[str]:
    return outcomes.gained(
        task,
        base=config.base,
        tuned=config.tuned,
        base_at_most=config.base_at_most,
        tuned_at_least=config.tuned_at_least,
    )


def _ungained(
    outcomes: Outcomes, config: SelectConfig, held_out: Mapping[str, Sequence[str]], sizes: dict[str, int]
) -> Gained:
    """Every sample that may select, for a rule that names its features: they need no gain, only typical values.

    The values match random sets to the features, and give the one-vector baselines. ``sizes`` is the size of every G_t.

    Raises:
        SelectionError: There is no such sample.
    """
    barred = {task: set(held_out.get(task, ())) for task in sizes}
    ids = {task: [k for k in outcomes.sample_ids(task) if k not in barred[task]] for task in sizes}
    ids = {task: samples[: config.max_samples] for task, samples in ids.items() if samples}
    if not ids:
        raise SelectionError("No task has a sample in the half that selects; evaluate more samples.")
    n = sum(map(len, ids.values()))
    note = (
        f"No task has enough samples that {config.tuned} gained, so values are over {n} samples, whatever the outcome; "
        f"'{config.rule}' does not depend on them"
    )
    return Gained(ids, {task: sizes[task] for task in ids}, {}, note)


def _selection_tasks(outcomes: Outcomes, config: SelectConfig) -> list[str]:
    if config.tasks is not None and not config.tasks:
        raise ConfigError("select.tasks names no task; leave it out to use every task that post-training did not see.")
    seen = [task for task in config.tasks or () if task in config.trained]
    if seen:
        raise ConfigError(
            f"select.tasks and select.trained both name '{seen[0]}', and a task that post-training saw cannot select; "
            "remove it from one of the two."
        )
    tasks = list(config.tasks or (task for task in outcomes.tasks if task not in config.trained))
    known = ", ".join(outcomes.tasks)
    unknown = [task for task in tasks if task not in outcomes.tasks]
    if unknown:
        raise ConfigError(f"There are no outcomes on task '{unknown[0]}' of select.tasks; the tasks are {known}.")
    if not tasks:
        raise ConfigError(
            f"Post-training saw every task ({known}), so none is left to select on; evaluate another task."
        )
    return tasks


def gained_sequences(
    family: ModelFamily, outcomes: Outcomes, gained: Mapping[str, Sequence[str]], config: SelectConfig
) -> dict[str, list[TokenizedSample]]:
    """Prompt and response of the tuned model for every gained sample; ``kept`` positions are pooled.

    Of several sampled responses, the first right one is taken.

    ``gained`` lists the ids of the samples of every task. The prompts are encoded by the text rule of the outcomes.

    Raises:
        SelectionError: A prompt is missing, or the response tokens are of another tokenizer.
    """

    def sequence(task: str, sample_id: str) -> TokenizedSample:
        response = outcomes.kept(config.tuned, task, sample_id).response_ids
        return _sequence(family, outcomes, task, sample_id, response, config)

    return {task: [sequence(task, sample_id) for sample_id in ids] for task, ids in gained.items()}


def right_answers(
    family: ModelFamily, outcomes: Outcomes, gained: Mapping[str, Sequence[str]], config: SelectConfig
) -> dict[str, list[TokenizedSample]]:
    """Prompt and right answer of every gained sample; the answer's tokens are ``response``.

    The right answer depends on ``config.target``: ``response`` is the tuned model's own response, which the scorer
    accepted; ``answer`` is the sample's answer, directly after the prompt. Arguments are those of `gained_sequences`.

    Raises:
        SelectionError: A sample has no such answer, or does not fit the context with it.
    """

    def sequence(task: str, sample_id: str) -> TokenizedSample:
        tokens = _answer_ids(family, outcomes, task, sample_id, config)
        found = _sequence(family, outcomes, task, sample_id, tokens, config)
        if len(found.ids) > family.max_context:
            raise SelectionError(
                f"Sample {sample_id} of {task} has {len(found.ids)} tokens with its answer, and the context holds "
                f"{family.max_context}; shorten the sample, or set select.target=response."
            )
        return found

    return {task: [sequence(task, sample_id) for sample_id in ids] for task, ids in gained.items()}


def _encoder(family: ModelFamily, outcomes: Outcomes) -> PromptEncoder:
    """What turned the prompts into token ids when the outcomes were made."""
    return PromptEncoder.of(family.tokenizers, TextConfig(**outcomes.text))


def _answer_ids(
    family: ModelFamily, outcomes: Outcomes, task: str, sample_id: str, config: SelectConfig
) -> Sequence[int]:
    if config.target == "answer":
        sample = outcomes.samples.get(sample_id)
        tokens = _encoder(family, outcomes).encode_text(sample.answer) if sample else ()
        missing, fix = "has no answer", "give every sample an answer, or set select.target=response"
    else:
        tokens = outcomes.kept(config.tuned, task, sample_id).response_ids
        missing, fix = f"has no response tokens of {config.tuned}", "evaluate again, or set select.target=answer"
    if not tokens:
        raise SelectionError(
            f"Sample {sample_id} of {task} {missing}, so there is no log-probability of a right answer to attribute; "
            f"{fix}, or rank by joint or score."
        )
    return tokens


def _sequence(
    family: ModelFamily, outcomes: Outcomes, task: str, sample_id: str, answer: Sequence[int], config: SelectConfig
) -> TokenizedSample:
    if sample_id not in outcomes.samples:
        raise SelectionError(f"The outcomes do not hold the prompt of sample {sample_id} of {task}; evaluate again.")
    encoder = _encoder(family, outcomes)
    prompt = encoder.encode(prompt_of(outcomes.samples[sample_id]))
    ids = [*prompt, *answer]
    n_tokens = min(int(model.config.get_text_config().vocab_size) for model in family)
    if max(ids) >= n_tokens:
        raise SelectionError(
            f"The response to sample {sample_id} of {task} holds token {max(ids)}, but the models have {n_tokens} tokens: "
            "the outcomes are of another tokenizer; evaluate again."
        )
    special = set(encoder.tokenizer.all_special_ids)
    response = [place >= len(prompt) for place in range(len(ids))]
    wanted = {"all": {True, False}, "prompt": {False}, "response": {True}}[config.positions]
    kept = [token not in special and flag in wanted for token, flag in zip(ids, response, strict=True)]
    return TokenizedSample(tuple(ids), tuple(kept), tuple(response))
