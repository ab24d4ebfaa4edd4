"""G_t, the samples that the tuned model gets right and the base wrong, and the tokens on which features are ranked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechprobe.dictionary.splicing import ReadSample
from mechprobe.errors import ConfigError, SelectionError
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes
from mechprobe.selection.config import SelectConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Gained:
    """G_t of every selection task (arXiv 2604.25011), held-out samples excluded.

    Attributes:
        ids: Task → samples that are read, at most ``max_samples`` of each.
        sizes: Task → size of its G_t, of the tasks that select.
        too_few: Task → size of its G_t, where that is below ``min_gained``; such a task does not select.
    """

    ids: dict[str, list[str]]
    sizes: dict[str, int]
    too_few: dict[str, int]


def gained_samples(outcomes: Outcomes, config: SelectConfig, held_out: Mapping[str, Sequence[str]]) -> Gained:
    """G_t of every selection task.

    Args:
        outcomes: Of base and tuned.
        config: Names the models, the tasks and the sizes.
        held_out: Task → samples that must not select.

    Raises:
        ConfigError: A model or a task has no outcomes, or a task is both to select and one that post-training saw.
        SelectionError: No task has enough gained samples.
    """
    for model in (config.base, config.tuned):
        if model not in outcomes.models:
            raise ConfigError(f"There are no outcomes of model '{model}'; evaluate it first.")
    kept: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    too_few: dict[str, int] = {}
    for task in _selection_tasks(outcomes, config):
        barred = set(held_out.get(task, ()))
        ids = [k for k in outcomes.gained(task, base=config.base, tuned=config.tuned) if k not in barred]
        if len(ids) >= max(1, config.min_gained):
            kept[task], sizes[task] = ids[: config.max_samples], len(ids)
        else:
            too_few[task] = len(ids)
    if not kept:
        rows = "; ".join(_counts(outcomes, task, n, config, set(held_out.get(task, ()))) for task, n in too_few.items())
        raise SelectionError(
            f"On no task does {config.tuned} get at least {max(1, config.min_gained)} samples right that {config.base} "
            f"gets wrong ({rows}); evaluate more samples, or lower select.min_gained."
        )
    return Gained(kept, sizes, too_few)


def _selection_tasks(outcomes: Outcomes, config: SelectConfig) -> list[str]:
    seen = [task for task in config.tasks or () if task in config.trained]
    if seen:
        raise ConfigError(
            f"select.tasks names '{seen[0]}', which post-training saw (trained), and such a task never selects; take it out "
            "of one of the two."
        )
    if config.tasks is not None and not config.tasks:
        raise ConfigError("select.tasks names no task; leave it out for every task that post-training did not see.")
    tasks = list(config.tasks or (task for task in outcomes.tasks if task not in config.trained))
    unknown = [task for task in tasks if task not in outcomes.tasks]
    if unknown:
        raise ConfigError(f"There are no outcomes on task '{unknown[0]}'; there are on {', '.join(outcomes.tasks)}.")
    if not tasks:
        raise ConfigError(
            f"Post-training saw every task ({', '.join(outcomes.tasks)}), so none is left to select on; "
            "evaluate a further task."
        )
    return tasks


def _counts(outcomes: Outcomes, task: str, n_gained: int, config: SelectConfig, barred: set[str]) -> str:
    """How many selection samples of a task each model has right."""
    ids = [k for k in outcomes.sample_ids(task) if k not in barred]
    right = {model: sum(outcomes.right(model, task, ids)) for model in (config.base, config.tuned)}
    return (
        f"{task}: {n_gained} gained; {config.base} has {right[config.base]} and {config.tuned} {right[config.tuned]} "
        f"of {len(ids)} right"
    )


def gained_sequences(
    family: ModelFamily, outcomes: Outcomes, gained: Mapping[str, Sequence[str]], config: SelectConfig
) -> dict[str, list[ReadSample]]:
    """Prompt and response of the tuned model on every gained sample; ``kept`` are the positions that are pooled.

    Raises:
        SelectionError: A prompt is not at hand, or the tokens are of another tokenizer.
    """
    return {
        task: [
            _sequence(family, outcomes, task, k, outcomes.record(config.tuned, task, k).response_ids, config)
            for k in ids
        ]
        for task, ids in gained.items()
    }


def right_answers(
    family: ModelFamily, outcomes: Outcomes, gained: Mapping[str, Sequence[str]], config: SelectConfig
) -> dict[str, list[ReadSample]]:
    """What the log-probability of the right answer is taken of, under ``config.target``; the answer is ``response``.

    ``response``: the tuned model's own response, which the scorer found right; ``answer``: the sample's answer, put
    right behind the prompt.

    Raises:
        SelectionError: A sample has no answer of that kind, or it does not fit the context.
    """
    found: dict[str, list[ReadSample]] = {}
    for task, ids in gained.items():
        found[task] = []
        for sample_id in ids:
            tokens = _answer_ids(family.tokenizer, outcomes, task, sample_id, config)
            sequence = _sequence(family, outcomes, task, sample_id, tokens, config)
            if len(sequence.ids) > family.max_context:
                raise SelectionError(
                    f"Sample {sample_id} of {task} with its answer has {len(sequence.ids)} tokens and the context takes "
                    f"{family.max_context}; shorten it, or take select.target=response."
                )
            found[task].append(sequence)
    return found


def _answer_ids(
    tokenizer: "PreTrainedTokenizerBase", outcomes: Outcomes, task: str, sample_id: str, config: SelectConfig
) -> Sequence[int]:
    if config.target == "answer":
        sample = outcomes.samples.get(sample_id)
        tokens = tokenizer(sample.answer, add_special_tokens=False).input_ids if sample else []
        missing, mend = "has no answer", "give every sample one, or take select.target=response"
    else:
        tokens = outcomes.record(config.tuned, task, sample_id).response_ids
        missing, mend = f"has no response tokens of {config.tuned}", "evaluate again, or take select.target=answer"
    if not tokens:
        raise SelectionError(
            f"Sample {sample_id} of {task} {missing}, so there is no log-probability of a right answer to attribute; "
            f"{mend}, or rank by joint or score."
        )
    return tokens


def _sequence(
    family: ModelFamily, outcomes: Outcomes, task: str, sample_id: str, answer: Sequence[int], config: SelectConfig
) -> ReadSample:
    if sample_id not in outcomes.samples:
        raise SelectionError(f"The outcomes do not hold the prompt of sample {sample_id} of {task}; evaluate again.")
    tokenizer = family.tokenizer
    prompt = tokenizer(outcomes.samples[sample_id].prompt).input_ids
    ids = [*prompt, *answer]
    n_tokens = min(int(model.config.get_text_config().vocab_size) for model in family)
    if max(ids) >= n_tokens:
        raise SelectionError(
            f"The response to sample {sample_id} of {task} holds token {max(ids)} and the models know {n_tokens}: the "
            "outcomes are of another tokenizer; evaluate again."
        )
    special = set(tokenizer.all_special_ids)
    response = [place >= len(prompt) for place in range(len(ids))]
    wanted = {"all": {True, False}, "prompt": {False}, "response": {True}}[config.positions]
    kept = [token not in special and flag in wanted for token, flag in zip(ids, response, strict=True)]
    return ReadSample(tuple(ids), tuple(kept), tuple(response))
