"""What a model answers on the samples of tasks: in words, tasks of one length limit together, or by log-likelihoods of options."""

from collections.abc import Sequence
from itertools import islice

from transformers import PreTrainedTokenizerBase

from mechprobe.errors import InputError
from mechprobe.evals.choice import MultipleChoice
from mechprobe.evals.likelihood import Ids, encode_pair, log_likelihoods
from mechprobe.evals.tasks import Task
from mechprobe.models.generation import Generated, generate
from mechprobe.models.load import LanguageModel
from mechprobe.records import Outcome, Sample

Asked = tuple[Task, Sample]


def run_tasks(
    model: LanguageModel,
    tasks: Sequence[Task],
    *,
    label: str | None = None,
    batch_size: int = 512,
    prefix: str = "",
) -> list[Outcome]:
    """Outcomes of one model on several tasks, in task order: greedy responses, or the likelier options.

    An edit in force on the model acts on both kinds of task. ``prefix`` is a forced beginning of the response; options
    are then judged behind it.
    """
    asked = [(task, sample) for task in tasks for sample in task.samples]
    name = label or model.name
    outcomes = _by_words(model, [pair for pair in asked if not pair[0].by_likelihood], name, batch_size, prefix)
    outcomes |= _by_likelihood(model, [pair for pair in asked if pair[0].by_likelihood], name, batch_size, prefix)
    return [outcomes[task.name, sample.id] for task, sample in asked]


def asked_prompts(task: Task, sample: Sample) -> list[str]:
    """Every prompt that the model is given for a sample: of multiple choice, one for each order of the options."""
    judge = task.scorer
    if not isinstance(judge, MultipleChoice):
        return [sample.prompt]
    return [judge.prompt(sample.id, order) for order in judge.orders(sample.id)]


def option_pairs(
    task: Task, sample: Sample, tokenizer: PreTrainedTokenizerBase, *, prefix: str = ""
) -> list[list[tuple[Ids, Ids]]]:
    """Token ids of ``(prompt with prefix, option)`` by order and, within it, by option as the file has them.

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
                f"Sample {sample.id} of {task.name}: two of its options have the same tokens, so that the model cannot "
                "tell them apart; change the options, or tasks.choice.show."
            )
        result.append([((*context, *forced), rest) for context, rest in encoded])
    return result


def _prefix_ids(tokenizer: PreTrainedTokenizerBase, prefix: str) -> Ids:
    return tuple(tokenizer(prefix, add_special_tokens=False).input_ids) if prefix else ()


def _by_words(
    model: LanguageModel, asked: Sequence[Asked], label: str, batch_size: int, prefix: str
) -> dict[tuple[str, str], Outcome]:
    found: dict[tuple[str, str], Outcome] = {}
    for longest in dict.fromkeys(task.max_new_tokens for task, _ in asked):
        mine = [pair for pair in asked if pair[0].max_new_tokens == longest]
        prompts = [asked_prompts(task, sample) for task, sample in mine]
        generated = iter(
            generate(
                model.hf,
                model.tokenizer,
                [prompt for group in prompts for prompt in group],
                max_new_tokens=longest,
                batch_size=batch_size,
                prefix=prefix,
            )
        )
        for (task, sample), group in zip(mine, prompts, strict=True):
            found[task.name, sample.id] = _spoken(task, sample, list(islice(generated, len(group))), label)
    return found


def _spoken(task: Task, sample: Sample, responses: Sequence[Generated], label: str) -> Outcome:
    """The outcome of a sample's responses; the one kept is that to the prompt in the file's order."""
    judge, first = task.scorer, responses[0]
    if isinstance(judge, MultipleChoice):
        decision = judge.by_words(sample.id, [response.text for response in responses])
        outcome, chosen = decision.outcome, decision.chosen
    else:
        outcome, chosen = judge.score(first.text, sample.answer), ()
    return Outcome(
        sample_id=sample.id,
        task=task.name,
        model=label,
        outcome=outcome,
        response=first.text,
        n_response_tokens=len(first.token_ids),
        response_ids=first.token_ids,
        chosen=chosen,
    )


def _by_likelihood(
    model: LanguageModel, asked: Sequence[Asked], label: str, batch_size: int, prefix: str
) -> dict[tuple[str, str], Outcome]:
    if not asked:
        return {}
    pairs = [option_pairs(task, sample, model.tokenizer, prefix=prefix) for task, sample in asked]
    flat = [pair for orders in pairs for options in orders for pair in options]
    scores = iter(log_likelihoods(model, flat, batch_size=batch_size))
    forced = _prefix_ids(model.tokenizer, prefix)
    result: dict[tuple[str, str], Outcome] = {}
    for (task, sample), orders in zip(asked, pairs, strict=True):
        mine = [list(islice(scores, len(options))) for options in orders]
        result[task.name, sample.id] = _weighed(task, sample, orders, mine, label=label, forced=(prefix, forced))
    return result


def _weighed(
    task: Task,
    sample: Sample,
    orders: Sequence[Sequence[tuple[Ids, Ids]]],
    scores: Sequence[Sequence[float]],
    *,
    label: str,
    forced: tuple[str, Ids],
) -> Outcome:
    """The outcome of a sample's log-likelihoods; the response is the chosen option as the file's order has it."""
    judge = task.scorer
    assert isinstance(judge, MultipleChoice), "only multiple choice has options"
    decision = judge.by_likelihood(sample.id, scores, [[len(rest) for _, rest in options] for options in orders])
    text, ids = "", ()
    if decision.option is not None:
        text = forced[0] + judge.continuation(sample.id, judge.orders(sample.id)[0], decision.option)
        ids = (*forced[1], *orders[0][decision.option][1])
    return Outcome(
        sample_id=sample.id,
        task=task.name,
        model=label,
        outcome=decision.outcome,
        response=text,
        n_response_tokens=len(ids),
        response_ids=ids,
        chosen=decision.chosen,
    )
