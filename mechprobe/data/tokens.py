"""Token sequences of the store, and the tokens that become no rows."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Document(NamedTuple):
    """Place of a document in a packed sequence.

    Attributes:
        id: Id of the prompt.
        task: Task of the prompt.
        start: Position of its first token in the sequence.
        n_prompt: Number of prompt tokens, including special tokens.
        n_response: Number of response tokens, which follow the prompt.
    """

    id: str
    task: str | None
    start: int
    n_prompt: int
    n_response: int


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of one prompt with its response, or of several packed documents.

    Attributes:
        id: Id of the prompt, followed by ``#`` and the source if a model generated the response.
        prompt_id: Id of the prompt. A packed sequence has its own, because its documents are held out together.
        task: Task of the prompt; for a packed sequence, the task that all its documents share.
        source: Model and temperature of a generated response (``rl@0.0``); None if the file contained it.
        prompt_ids: Token ids of the prompt, including special tokens; all ids of a packed sequence.
        response_ids: Token ids of the response; empty if there is none.
        n_cut: Number of tokens that were cut because the sequence was too long.
        documents: The packed documents; empty for a sequence of one prompt.
        contents: What its prompts say (`Prompt.content_key`), by which splits go; not kept on disk.
    """

    id: str
    prompt_id: str
    task: str | None
    source: str | None
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    n_cut: int = 0
    documents: tuple[Document, ...] = ()
    contents: tuple[str, ...] = field(default=(), compare=False, repr=False)

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
        """Index into ``documents`` of each position; -1 for end tokens between them. All 0 if nothing is packed."""
        if not self.documents:
            return np.zeros(len(self.ids), dtype=np.int32)
        index = np.full(len(self.ids), -1, dtype=np.int32)
        for number, document in enumerate(self.documents):
            index[document.start : document.start + document.n_prompt + document.n_response] = number
        return index


def special_token_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Ids of BOS, end and padding tokens, and of all added tokens that are marked special, such as chat markers."""
    added = {int(token) for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return tuple(sorted(added | {int(token) for token in tokenizer.all_special_ids}))
