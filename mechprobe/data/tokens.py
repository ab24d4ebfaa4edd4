"""Texts to token ids, each prompt checked against the context before anything is run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from mechprobe.data.chat import Chat
from mechprobe.data.prompts import Prompt
from mechprobe.data.truncation import TooLongError, Truncate, fit
from mechprobe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Document(NamedTuple):
    """Where a document stands in a packed sequence.

    Attributes:
        id: Of the prompt.
        task: Of the prompt.
        start: Position of its first token in the sequence.
        n_prompt: Tokens of its prompt, special ones included.
        n_response: Tokens of its response, behind them.
    """

    id: str
    task: str | None
    start: int
    n_prompt: int
    n_response: int


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of one prompt and what follows it, or of several documents that are packed.

    Attributes:
        id: Of the prompt; with ``#`` and the source behind it where a model wrote the response.
        prompt_id: Of the prompt; of a packed sequence its own, as its documents are held out together.
        task: Of the prompt; of a packed sequence what all its documents share.
        source: Which model wrote the response and at what temperature (``rl@0.0``); None when the file gave it.
        prompt_ids: Token ids of the prompt, special tokens included; all of a packed sequence.
        response_ids: Token ids of the response; empty when there is none.
        n_cut: Tokens that were left out because the sequence would have been too long.
        documents: What is packed; empty for a sequence of one prompt.
    """

    id: str
    prompt_id: str
    task: str | None
    source: str | None
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    n_cut: int = 0
    documents: tuple[Document, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids."""
        return self.prompt_ids + self.response_ids

    @property
    def is_response(self) -> Bool[np.ndarray, " pos"]:
        """Which positions belong to a response."""
        mask = np.zeros(len(self.ids), dtype=bool)
        mask[len(self.prompt_ids) :] = True
        for document in self.documents:
            first = document.start + document.n_prompt
            mask[first : first + document.n_response] = True
        return mask

    @property
    def document_index(self) -> Int[np.ndarray, " pos"]:
        """Which of ``documents`` each position belongs to; -1 for the end token between two, 0 where none is packed."""
        if not self.documents:
            return np.zeros(len(self.ids), dtype=np.int32)
        index = np.full(len(self.ids), -1, dtype=np.int32)
        for number, document in enumerate(self.documents):
            index[document.start : document.start + document.n_prompt + document.n_response] = number
        return index


def special_token_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Tokens that are no text: BOS, end, padding, and every added token that is marked special (chat marks)."""
    added = {int(token) for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return tuple(sorted(added | {int(token) for token in tokenizer.all_special_ids}))


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, *, chat: Chat | None = None) -> tuple[int, ...]:
    """Token ids of a prompt: with the tokenizer's own special tokens, or as the chat template has it.

    Raises:
        InputError: It has no tokens, or is a conversation and there is no chat template to make a text of it.
    """
    if chat is None and prompt.messages is not None:
        raise InputError(f"{prompt} is a list of messages; set cache.chat_template = true.")
    ids = chat.encode(tokenizer, prompt) if chat is not None else tuple(tokenizer(prompt.prompt).input_ids)
    if not ids:
        raise InputError(f"{prompt} has no tokens; drop it.")
    return ids


def encode_response(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    """Token ids of a response, without special tokens of its own."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def join(
    prompt: Prompt,
    prompt_ids: tuple[int, ...],
    response_ids: tuple[int, ...] = (),
    *,
    max_length: int,
    truncate: Truncate = "response",
    bos_id: int | None = None,
) -> TokenSequence | None:
    """A prompt and a response as one sequence of at most ``max_length`` tokens.

    Returns:
        The sequence; None where ``truncate`` drops it.

    Raises:
        InputError: It does not fit, and ``truncate`` does not cut it.
    """
    n_head = int(bos_id is not None and prompt_ids[:1] == (bos_id,))
    try:
        fitted = fit(prompt_ids, response_ids, max_length=max_length, truncate=truncate, n_head=n_head)
    except TooLongError as error:
        raise InputError(
            f"{prompt} has {error} and the limit is {max_length}; shorten it, drop it, or set cache.truncate."
        ) from None
    if fitted is None:
        return None
    return TokenSequence(
        id=prompt.id,
        prompt_id=prompt.id,
        task=prompt.task,
        source=None,
        prompt_ids=fitted.prompt_ids,
        response_ids=fitted.response_ids,
        n_cut=fitted.n_cut,
    )
