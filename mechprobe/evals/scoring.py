"""From the responses to a sample to its outcome: how they ended, what of them is thinking, and whether the answer is right.

A response that was cut at its limit, or that stopped inside its thinking block, is never scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mechprobe.evals.choice import MultipleChoice
from mechprobe.evals.scorers.answer_part import answer_part
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.tasks import Task
from mechprobe.models.generation import Generated
from mechprobe.records import Outcome, Sample
from mechprobe.types import Finish, OutcomeName, ThinkTags

__all__ = ["SplitResponse", "response_outcome", "scored_text", "scorer", "split_response"]


@dataclass(frozen=True, slots=True)
class SplitResponse:
    """A response after its thinking was split off.

    Attributes:
        answer: What the scorer reads; None if the response was cut or never left its thinking block.
        finish: How the response ended.
        n_thinking_tokens: Number of its tokens up to the end of the thinking block; all of them if the block has no end.
    """

    answer: str | None
    finish: Finish
    n_thinking_tokens: int


def split_response(
    response: Generated, tokenizer: PreTrainedTokenizerBase, think: ThinkTags | None, *, opened: bool = False
) -> SplitResponse:
    """Split a response into thinking and answer.

    The text of a response has no special tokens. Where a tag is made of such tokens, the response is decoded with them.

    Args:
        response: Its ``finish`` is ``stop`` or ``length``.
        tokenizer: Tokenizer that gave its ids.
        think: Start and end tag; None for models that do not think.
        opened: Whether the prompt opened the thinking block.
    """
    ids, text = list(response.token_ids), response.text
    hidden = think is not None and _has_special(tokenizer, think)
    answer = answer_part(str(tokenizer.decode(ids)) if hidden else text, think, opened=opened)
    n_thinking = 0
    if think is not None and answer is None:
        n_thinking = len(ids)
    elif think is not None and (answer != text or hidden):
        n_thinking = _end_of_thinking(tokenizer, ids, think[1], hidden=hidden)
        if hidden:
            answer = str(tokenizer.decode(ids[n_thinking:], skip_special_tokens=True))
    if response.finish == "length":
        return SplitResponse(None, "length", n_thinking)
    return SplitResponse(answer, response.finish if answer is not None else "unfinished", n_thinking)


def scored_text(
    outcome: Outcome, tokenizer: PreTrainedTokenizerBase, think: ThinkTags | None, *, opened: bool = False
) -> str | None:
    """The part of a kept response that a scorer reads; None if it was cut or never left its thinking block."""
    if outcome.cut:
        return None
    response = Generated(outcome.response, outcome.response_ids, "stop")
    return split_response(response, tokenizer, think, opened=opened).answer


def _has_special(tokenizer: PreTrainedTokenizerBase, tags: ThinkTags) -> bool:
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return any(token in tag for token in special for tag in tags)


def _end_of_thinking(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], end: str, *, hidden: bool) -> int:
    """Number of tokens up to the last end tag; 0 without one."""

    def count(n: int) -> int:
        return str(tokenizer.decode(list(ids[:n]), skip_special_tokens=not hidden)).count(end)

    wanted, low, high = count(len(ids)), 0, len(ids)
    while low < high:  # the shortest beginning with all end tags
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= wanted else (middle + 1, high)
    return low if wanted else 0


def response_outcome(
    task: Task,
    sample: Sample,
    responses: Sequence[Generated],
    label: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    opened: bool = False,
    draw: int = 0,
) -> Outcome:
    """The outcome of a sample.

    For multiple choice there is one response for every order of the options. The outcome keeps the response to the file's
    order. If any of them was cut or is unfinished, no order can be compared with it, and the item is unparsed.

    Args:
        task: Its scorer judges, and its tags split the responses.
        sample: The sample.
        responses: One response, or one for every order of the options.
        label: Name of the model in the outcome.
        tokenizer: Tokenizer that gave the ids of the responses.
        opened: Whether the prompts opened a thinking block, see `PromptEncoder.opens_thinking`.
        draw: Index of the response among the sampled ones.
    """
    judge, first = task.scorer, responses[0]
    parts = [split_response(response, tokenizer, task.think, opened=opened) for response in responses]
    deciding = next((part for part in parts if part.answer is None), parts[0])
    outcome: OutcomeName = "unparsed"
    chosen: tuple[int, ...] = ()
    if isinstance(judge, MultipleChoice):
        decision = judge.decide_by_responses(sample.id, [part.answer or "" for part in parts])
        chosen = decision.chosen
        outcome = decision.outcome if all(part.answer is not None for part in parts) else outcome
    elif parts[0].answer is not None:
        outcome = judge.judge(parts[0].answer, sample.answer)
    return Outcome(
        sample.id,
        task.name,
        label,
        outcome,
        first.text,
        len(first.token_ids),
        response_ids=first.token_ids,
        chosen=chosen,
        draw=draw,
        finish=deciding.finish,
        n_thinking_tokens=parts[0].n_thinking_tokens,
    )
