"""Texts to token ids, each prompt checked against the context before anything is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechprobe.data.prompts import Prompt
from mechprobe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of one prompt and what follows it.

    Attributes:
        id: Of the prompt; with ``#`` and the source behind it where a model wrote the response.
        prompt_id: Of the prompt.
        task: Of the prompt.
        source: Which model wrote the response and at what temperature (``rl@0.0``); None when the file gave it.
        prompt_ids: Token ids of the prompt, special tokens included.
        response_ids: Token ids of the response; empty when there is none.
        n_cut: Tokens of the response that the context had no place for.
    """

    id: str
    prompt_id: str
    task: str | None
    source: str | None
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    n_cut: int = 0


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, *, max_length: int) -> tuple[int, ...]:
    """Token ids of a prompt, with the tokenizer's own special tokens.

    Raises:
        InputError: It has no tokens, or more than ``max_length``.
    """
    ids = tuple(tokenizer(prompt.prompt).input_ids)
    if not ids:
        raise InputError(f"Prompt {prompt.id!r} has no tokens; drop it.")
    if len(ids) > max_length:
        raise InputError(
            f"Prompt {prompt.id!r} has {len(ids)} tokens and the limit is {max_length}; shorten it or drop it."
        )
    return ids


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt], *, max_length: int
) -> list[tuple[int, ...]]:
    """`encode_prompt` of every prompt, in order."""
    return [encode_prompt(tokenizer, prompt, max_length=max_length) for prompt in prompts]


def encode_response(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    """Token ids of a response, without special tokens of its own."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def join(
    prompt: Prompt,
    prompt_ids: tuple[int, ...],
    response_ids: tuple[int, ...] = (),
    *,
    source: str | None = None,
    max_length: int,
) -> TokenSequence:
    """A prompt and a response as one sequence; a response that does not fit is cut at the context's end."""
    kept = response_ids[: max_length - len(prompt_ids)]
    return TokenSequence(
        id=prompt.id if source is None else f"{prompt.id}#{source}",
        prompt_id=prompt.id,
        task=prompt.task,
        source=source,
        prompt_ids=prompt_ids,
        response_ids=kept,
        n_cut=len(response_ids) - len(kept),
    )
