"""The tokens of the gained samples: prompts with the tuned model's responses, or with right answers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.errors import SelectionError
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes
from mechprobe.selection.config import SelectConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def gained_sequences(
    family: ModelFamily, outcomes: Outcomes, gained: Mapping[str, Sequence[str]], config: SelectConfig
) -> dict[str, list[TokenizedSample]]:
    """Prompt and response of the tuned model for every gained sample; ``kept`` positions are pooled.

    Args:
        family: The models; their tokenizer encodes the prompts.
        outcomes: Outcomes with their samples.
        gained: Task → ids of the gained samples.
        config: The tuned model, and which positions are pooled.

    Raises:
        SelectionError: A prompt is missing, or the response tokens are of another tokenizer.
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
) -> dict[str, list[TokenizedSample]]:
    """Prompt and right answer of every gained sample; the answer's tokens are ``response``.

    The right answer depends on ``config.target``: ``response`` is the tuned model's own response, which the scorer
    accepted; ``answer`` is the sample's answer, directly after the prompt. Arguments are those of `gained_sequences`.

    Raises:
        SelectionError: A sample has no such answer, or does not fit the context with it.
    """
    found: dict[str, list[TokenizedSample]] = {}
    for task, ids in gained.items():
        found[task] = []
        for sample_id in ids:
            tokens = _answer_ids(family.tokenizer, outcomes, task, sample_id, config)
            sequence = _sequence(family, outcomes, task, sample_id, tokens, config)
            if len(sequence.ids) > family.max_context:
                raise SelectionError(
                    f"Sample {sample_id} of {task} has {len(sequence.ids)} tokens with its answer, and the context holds "
                    f"{family.max_context}; shorten the sample, or set select.target=response."
                )
            found[task].append(sequence)
    return found


def _answer_ids(
    tokenizer: "PreTrainedTokenizerBase", outcomes: Outcomes, task: str, sample_id: str, config: SelectConfig
) -> Sequence[int]:
    if config.target == "answer":
        sample = outcomes.samples.get(sample_id)
        tokens = tokenizer(sample.answer, add_special_tokens=False).input_ids if sample else []
        missing, fix = "has no answer", "give every sample an answer, or set select.target=response"
    else:
        tokens = outcomes.record(config.tuned, task, sample_id).response_ids
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
    tokenizer = family.tokenizer
    prompt = tokenizer(outcomes.samples[sample_id].prompt).input_ids
    ids = [*prompt, *answer]
    n_tokens = min(int(model.config.get_text_config().vocab_size) for model in family)
    if max(ids) >= n_tokens:
        raise SelectionError(
            f"The response to sample {sample_id} of {task} holds token {max(ids)}, but the models have {n_tokens} tokens: "
            "the outcomes are of another tokenizer; evaluate again."
        )
    special = set(tokenizer.all_special_ids)
    response = [place >= len(prompt) for place in range(len(ids))]
    wanted = {"all": {True, False}, "prompt": {False}, "response": {True}}[config.positions]
    kept = [token not in special and flag in wanted for token, flag in zip(ids, response, strict=True)]
    return TokenizedSample(tuple(ids), tuple(kept), tuple(response))
