"""Outcomes of one model on tasks: from generated responses, or from the log-likelihoods of options.

A log-likelihood is computed by generation in which the tokens of the continuation are forced. Padding, caches and edits
therefore act exactly as in generation: an edit finds the last prompt token at the last position of the first forward call.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import Ids, PromptEncoder
from mechprobe.data.messages import content_text
from mechprobe.data.prompts import Prompt
from mechprobe.errors import InputError
from mechprobe.evals.choice import MultipleChoice
from mechprobe.evals.scoring import response_outcome
from mechprobe.evals.tasks import Task
from mechprobe.models.generation import Generated, forced_log_probs, generate, length_batches
from mechprobe.models.load import LanguageModel
from mechprobe.progress import activity, progress
from mechprobe.ranks import in_turns
from mechprobe.records import Outcome, Sample


@torch.no_grad()
def log_likelihoods(model: LanguageModel, pairs: Sequence[tuple[Ids, Ids]], *, batch_size: int = 512) -> list[float]:
    """Log p(continuation | prompt) in nats of every ``(prompt ids, continuation ids)``, in the given order.

    Pairs that differ only in the last token share their forward passes. Prompts are padded on the left. Continuations in
    one batch have the same length, so nothing else is padded.

    Args:
        model: Hooks on its transformers model (`mechprobe.interventions.edited`) take effect.
        pairs: Token ids; neither part may be empty.
        batch_size: Maximal number of positions in one forward batch of prompts, as if logits of all of them were kept.

    Raises:
        ModelError: Logits are not finite, or the architecture does not generate exactly.
    """
    rows: dict[tuple[Ids, Ids], list[int]] = {}
    for index, (prompt, continuation) in enumerate(pairs):
        rows.setdefault((prompt, continuation[:-1]), []).append(index)
    by_length: dict[int, list[tuple[Ids, Ids]]] = {}
    for row in rows:
        by_length.setdefault(len(row[1]) + 1, []).append(row)
    result = [0.0] * len(pairs)
    batches: list[list[tuple[Ids, Ids]]] = []
    for length, same_length in sorted(by_length.items()):
        lengths = [len(prompt) for prompt, _ in same_length]
        found = length_batches(lengths, max(1, batch_size // length), equal=not model.behaviour.padding)
        batches += [[same_length[index] for index in batch] for batch in found]

    def read(batch: list[tuple[Ids, Ids]]) -> list[tuple[list[float], list[float]]]:
        return forced_log_probs(model, batch, [[pairs[index][1][-1] for index in rows[row]] for row in batch])

    with progress(len(rows), f"log-likelihoods by {model.name}", unit="prompts", inner=True) as advance:
        for batch, values in zip(batches, in_turns(read, batches), strict=True):
            for row, (before, after) in zip(batch, values, strict=True):
                for index, value in zip(rows[row], after, strict=True):
                    result[index] = sum(before) + value
            advance(len(batch))
    return result


Query = tuple[Task, Sample]


Responder = Callable[[str, Task, Sample], list[Generated]]
"""Gives the responses of a model, by its name in the outcomes, to the prompts of a sample: all draws of the first, then the
next."""


class _Run(NamedTuple):
    model: LanguageModel
    label: str
    batch_size: int
    prefix: str
    respond: Responder | None = None


def run_tasks(
    model: LanguageModel,
    tasks: Sequence[Task],
    *,
    label: str | None = None,
    batch_size: int = 512,
    prefix: str = "",
    respond: Responder | None = None,
) -> list[Outcome]:
    """Outcomes of one model on several tasks, in task order; the draws of a sample follow each other.

    Responses are generated as the task's ``sampling`` says. The seed of a response depends on the setting, the prompt and the
    draw, so that models and edits that are asked the same prompts share their random numbers. An edit that is in force on the
    model applies to generation and to log-likelihoods alike.

    Args:
        model: The model.
        tasks: The tasks.
        label: Name of the model in the outcomes; its own name when None.
        batch_size: Number of prompts in one forward batch.
        prefix: Text that every response is forced to begin with. Options are scored after it.
        respond: Gives finished responses of another engine, which are scored; None generates them here.
    """
    run = _Run(model, label or model.name, batch_size, prefix, respond)
    queries = [(task, sample) for task in tasks for sample in task.samples]
    outcomes = _from_responses(run, [query for query in queries if not query[0].by_likelihood])
    outcomes |= _from_likelihoods(run, [query for query in queries if query[0].by_likelihood])
    return [outcome for task, sample in queries for outcome in outcomes[task.name, sample.id]]


def prompts_of(task: Task, sample: Sample) -> list[Prompt]:
    """Every prompt of a sample: one, or one per order of the options for multiple choice."""
    judge = task.scorer
    if not isinstance(judge, MultipleChoice):
        return [prompt_of(sample)]
    return [prompt_of(sample, judge.prompt(sample.id, order)) for order in judge.orders(sample.id)]


def prompt_of(sample: Sample, text: str | None = None) -> Prompt:
    """The prompt of a sample; ``text`` in place of its own, which is the last message of a conversation."""
    text, messages = sample.prompt if text is None else text, sample.messages
    if messages is not None and text != content_text(messages[-1]):
        messages = (*messages[:-1], {**messages[-1], "content": text})
    return Prompt(sample.id, text, messages=messages, where=f"task {sample.task}")


def encoders_of(
    tokenizers: Mapping[str, PreTrainedTokenizerBase], tasks: Iterable[Task]
) -> dict[TextConfig, PromptEncoder]:
    """What turns the prompts of tasks into token ids, by their text rules; ``tokenizers`` are those of the whole family."""
    return {text: PromptEncoder.of(tokenizers, text) for text in {task.text: None for task in tasks}}


def option_pairs(
    task: Task, sample: Sample, encoder: PromptEncoder, *, prefix: str = ""
) -> list[list[tuple[Ids, Ids]]]:
    """Token ids ``(prompt with prefix, option)``, indexed ``[order][option]`` with options in the order of the file.

    Raises:
        InputError: Two options have the same tokens.
    """
    judge = task.scorer
    assert isinstance(judge, MultipleChoice), "only multiple choice has options"
    forced = encoder.encode_text(prefix)
    result = []
    for order, prompt in zip(judge.orders(sample.id), prompts_of(task, sample), strict=True):
        texts = (judge.continuation(sample.id, order, option) for option in range(len(order)))
        encoded = [encoder.encode_pair(prompt, text) for text in texts]
        if len({rest for _, rest in encoded}) < len(encoded):
            raise InputError(
                f"Sample {sample.id} of task {task.name} has two options with the same tokens, so the model cannot "
                "distinguish them; change the options or tasks.choice.show."
            )
        result.append([((*context, *forced), rest) for context, rest in encoded])
    return result


@dataclass(frozen=True)
class Asking:
    """Samples whose responses are decoded in the same way, so that they share batches.

    Attributes:
        encoder: Gives their token ids.
        options: Arguments of `generate`.
        queries: The samples with their tasks.
        prompts: Every prompt of each sample.
    """

    encoder: PromptEncoder
    options: dict[str, Any]
    queries: list[Query]
    prompts: list[list[Prompt]]

    @property
    def ids(self) -> list[Ids]:
        """Token ids of all prompts, sample after sample."""
        return [self.encoder.encode(prompt) for of_sample in self.prompts for prompt in of_sample]

    def by_sample(self, generated: Sequence[Generated]) -> dict[tuple[str, str], list[Generated]]:
        """The responses to all prompts by task and sample id."""
        rest = iter(generated)
        return {
            (task.name, sample.id): list(islice(rest, task.n_draws * len(of_sample)))
            for (task, sample), of_sample in zip(self.queries, self.prompts, strict=True)
        }

    def outcomes(self, index: int, responses: Sequence[Generated], label: str) -> list[Outcome]:
        """The outcomes of the responses to one sample, in the order of the draws; ``label`` names the model in them."""
        (task, sample), prompts, rest = self.queries[index], self.prompts[index], iter(responses)
        by_prompt = [list(islice(rest, task.n_draws)) for _ in prompts]
        opened = task.think is not None and self.encoder.opens_thinking(prompts[0], task.think)
        return [
            response_outcome(task, sample, of_draw, label, self.encoder.tokenizer, opened=opened, draw=draw)
            for draw, of_draw in enumerate(zip(*by_prompt, strict=True))
        ]

    def responses(self, model: LanguageModel, *, batch_size: int = 512, prefix: str = "") -> list[Generated]:
        """The model's responses to all prompts."""
        settings = {**self.options, "batch_size": batch_size, "prefix": prefix}
        return generate(model, self.encoder.tokenizer, self.ids, **settings)


def askings(tokenizers: Mapping[str, PreTrainedTokenizerBase], queries: Sequence[Query]) -> list[Asking]:
    """The samples of tasks that ask for responses, by how these are decoded; ``tokenizers`` are those of the whole family."""
    groups: list[tuple[TextConfig, dict[str, Any], list[Query]]] = []
    for query in queries:
        text, options = query[0].text, _decoding(query[0])
        members = next((found for *key, found in groups if key == [text, options]), None)
        if members is None:
            groups.append((text, options, [query]))
        else:
            members.append(query)
    return [
        Asking(PromptEncoder.of(tokenizers, text), options, group, [prompts_of(task, sample) for task, sample in group])
        for text, options, group in groups
    ]


def _decoding(task: Task) -> dict[str, Any]:
    """The options of `generate` that a task sets; tasks that agree on them share their batches."""
    return {"max_new_tokens": task.max_new_tokens, "stop": task.stop, **task.sampling.model_dump()}


def _from_responses(run: _Run, queries: Sequence[Query]) -> dict[tuple[str, str], list[Outcome]]:
    """Outcomes by task and sample id, in the order of the draws."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for asking in askings(run.model.tokenizers, queries):
        if run.respond is None:
            generated = asking.responses(run.model, batch_size=run.batch_size, prefix=run.prefix)
        else:
            generated = [one for task, sample in asking.queries for one in run.respond(run.label, task, sample)]
        by_sample = asking.by_sample(generated)
        with activity("scoring the responses"):
            for index, (task, sample) in enumerate(asking.queries):
                found[task.name, sample.id] = asking.outcomes(index, by_sample[task.name, sample.id], run.label)
    return found


def _from_likelihoods(run: _Run, queries: Sequence[Query]) -> dict[tuple[str, str], list[Outcome]]:
    """Outcomes by task and sample id; log-likelihoods give one for each sample."""
    if not queries:
        return {}
    encoders = encoders_of(run.model.tokenizers, (task for task, _ in queries))
    pairs = [option_pairs(task, sample, encoders[task.text], prefix=run.prefix) for task, sample in queries]
    flat = [pair for orders in pairs for options in orders for pair in options]
    scores = iter(log_likelihoods(run.model, flat, batch_size=run.batch_size))
    result: dict[tuple[str, str], list[Outcome]] = {}
    for (task, sample), orders in zip(queries, pairs, strict=True):
        of_sample = [list(islice(scores, len(options))) for options in orders]
        forced = encoders[task.text].encode_text(run.prefix)
        result[task.name, sample.id] = [_likelihood_outcome(run, task, sample, orders, of_sample, forced)]
    return result


def _likelihood_outcome(
    run: _Run, task: Task, sample: Sample, orders: list[list[tuple[Ids, Ids]]], scores: list[list[float]], forced: Ids
) -> Outcome:
    """The outcome of a sample's log-likelihoods. The response is ``forced`` and the chosen option in the order of the file."""
    judge = task.scorer
    assert isinstance(judge, MultipleChoice), "only multiple choice has options"
    n_tokens = [[len(rest) for _, rest in options] for options in orders]
    decision = judge.decide_by_likelihood(sample.id, scores, n_tokens)
    text, ids = "", ()
    if decision.option is not None:
        text = run.prefix + judge.continuation(sample.id, judge.orders(sample.id)[0], decision.option)
        ids = (*forced, *orders[0][decision.option][1])
    chosen = decision.chosen
    return Outcome(sample.id, task.name, run.label, decision.outcome, text, len(ids), response_ids=ids, chosen=chosen)
