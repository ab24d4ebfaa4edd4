"""Outcomes of one model on tasks: from generated responses, or from the log-likelihoods of options."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from mechprobe.errors import InputError
from mechprobe.evals.choice import MultipleChoice
from mechprobe.evals.likelihood import Ids, encode_pair, log_likelihoods
from mechprobe.evals.tasks import Task
from mechprobe.models.generation import Generated, generate
from mechprobe.models.load import LanguageModel
from mechprobe.records import Outcome, Sample

Query = tuple[Task, Sample]


class _Run(NamedTuple):
    model: LanguageModel
    label: str
    batch_size: int
    prefix: str

    @property
    def prefix_ids(self) -> Ids:
        return _prefix_ids(self.model.tokenizer, self.prefix)


def run_tasks(
    model: LanguageModel, tasks: Sequence[Task], *, label: str | None = None, batch_size: int = 512, prefix: str = ""
) -> list[Outcome]:
    """Outcomes of one model on several tasks, in task order. Responses are generated greedily.

    An edit that is in force on the model applies to generation and to log-likelihoods alike.

    Args:
        model: The model.
        tasks: The tasks.
        label: Name of the model in the outcomes; its own name when None.
        batch_size: Number of prompts in one forward batch.
        prefix: Text that every response is forced to begin with. Options are scored after it.
    """
    run = _Run(model, label or model.name, batch_size, prefix)
    queries = [(task, sample) for task in tasks for sample in task.samples]
    outcomes = _from_responses(run, [query for query in queries if not query[0].by_likelihood])
    outcomes |= _from_likelihoods(run, [query for query in queries if query[0].by_likelihood])
    return [outcomes[task.name, sample.id] for task, sample in queries]


def prompts_of(task: Task, sample: Sample) -> list[str]:
    """Every prompt of a sample: one, or one per order of the options for multiple choice."""
    judge = task.scorer
    if not isinstance(judge, MultipleChoice):
        return [sample.prompt]
    return [judge.prompt(sample.id, order) for order in judge.orders(sample.id)]


def option_pairs(
    task: Task, sample: Sample, tokenizer: PreTrainedTokenizerBase, *, prefix: str = ""
) -> list[list[tuple[Ids, Ids]]]:
    """Token ids ``(prompt with prefix, option)``, indexed ``[order][option]`` with options in the order of the file.

    Raises:
        InputError: Two options have the same tokens.
    """
    judge = task.scorer
    assert isinstance(judge, MultipleChoice), "only multiple choice has options"
    forced = _prefix_ids(tokenizer, prefix)
    result = []
    for order in judge.orders(sample.id):
        prompt = judge.prompt(sample.id, order)
        texts = (judge.continuation(sample.id, order, option) for option in range(len(order)))
        encoded = [encode_pair(tokenizer, prompt, text) for text in texts]
        if len({rest for _, rest in encoded}) < len(encoded):
            raise InputError(
                f"Sample {sample.id} of task {task.name} has two options with the same tokens, so the model cannot "
                "distinguish them; change the options or tasks.choice.show."
            )
        result.append([((*context, *forced), rest) for context, rest in encoded])
    return result


def _prefix_ids(tokenizer: PreTrainedTokenizerBase, prefix: str) -> Ids:
    return tuple(tokenizer(prefix, add_special_tokens=False).input_ids) if prefix else ()


def _from_responses(run: _Run, queries: Sequence[Query]) -> dict[tuple[str, str], Outcome]:
    """Outcomes by task and sample id. Tasks with the same length limit share their batches."""
    found: dict[tuple[str, str], Outcome] = {}
    for limit in dict.fromkeys(task.max_new_tokens for task, _ in queries):
        group = [query for query in queries if query[0].max_new_tokens == limit]
        prompts = [prompts_of(task, sample) for task, sample in group]
        flat = [prompt for of_sample in prompts for prompt in of_sample]
        options = {"max_new_tokens": limit, "batch_size": run.batch_size, "prefix": run.prefix}
        generated = iter(generate(run.model.hf, run.model.tokenizer, flat, **options))
        for (task, sample), of_sample in zip(group, prompts, strict=True):
            responses = list(islice(generated, len(of_sample)))
            found[task.name, sample.id] = _response_outcome(task, sample, responses, run.label)
    return found


def _response_outcome(task: Task, sample: Sample, responses: Sequence[Generated], label: str) -> Outcome:
    """The outcome of a sample's responses. The response to the order of the file is kept."""
    judge, first = task.scorer, responses[0]
    if isinstance(judge, MultipleChoice):
        decision = judge.decide_by_responses(sample.id, [response.text for response in responses])
        outcome, chosen = decision.outcome, decision.chosen
    else:
        outcome, chosen = judge.score(first.text, sample.answer), ()
    ids = first.token_ids
    return Outcome(sample.id, task.name, label, outcome, first.text, len(ids), response_ids=ids, chosen=chosen)


def _from_likelihoods(run: _Run, queries: Sequence[Query]) -> dict[tuple[str, str], Outcome]:
    """Outcomes by task and sample id."""
    if not queries:
        return {}
    pairs = [option_pairs(task, sample, run.model.tokenizer, prefix=run.prefix) for task, sample in queries]
    flat = [pair for orders in pairs for options in orders for pair in options]
    scores = iter(log_likelihoods(run.model, flat, batch_size=run.batch_size))
    result: dict[tuple[str, str], Outcome] = {}
    for (task, sample), orders in zip(queries, pairs, strict=True):
        of_sample = [list(islice(scores, len(options))) for options in orders]
        result[task.name, sample.id] = _likelihood_outcome(run, task, sample, orders, of_sample)
    return result


def _likelihood_outcome(
    run: _Run, task: Task, sample: Sample, orders: list[list[tuple[Ids, Ids]]], scores: list[list[float]]
) -> Outcome:
    """The outcome of a sample's log-likelihoods. The response is the chosen option in the order of the file."""
    judge = task.scorer
    assert isinstance(judge, MultipleChoice), "only multiple choice has options"
    n_tokens = [[len(rest) for _, rest in options] for options in orders]
    decision = judge.decide_by_likelihood(sample.id, scores, n_tokens)
    text, ids = "", ()
    if decision.option is not None:
        text = run.prefix + judge.continuation(sample.id, judge.orders(sample.id)[0], decision.option)
        ids = (*run.prefix_ids, *orders[0][decision.option][1])
    chosen = decision.chosen
    return Outcome(sample.id, task.name, run.label, decision.outcome, text, len(ids), response_ids=ids, chosen=chosen)
