"""Sequences of limited length: a prompt with its response, truncated where it is too long; or several packed documents.

Packed documents are kept whole and in order, with an end token between them, as in pre-training corpora. A packed sequence
is an ordinary sequence to the models: attention reaches earlier documents, and positions count on.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mechprobe.data.config import Truncate
from mechprobe.data.prompts import Prompt
from mechprobe.data.tokens import Document, TokenSequence
from mechprobe.errors import InputError


class Fitted(NamedTuple):
    """Prompt and response within the limit, and the number of tokens that were cut."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    n_cut: int


class TooLongError(ValueError):
    """A sequence is too long and may not be cut; the message states its length."""


def fit(
    prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], *, max_length: int, truncate: Truncate, n_head: int = 0
) -> Fitted | None:
    """Truncate a sequence to ``max_length`` tokens, at least 1; None if it is dropped.

    ``left`` keeps the first ``n_head`` tokens of the prompt: 1 if the prompt starts with BOS.

    Raises:
        TooLongError: The sequence is too long and may not be cut.

    Example:
        >>> fit((1, 10, 11, 12), (20, 21), max_length=4, truncate="left", n_head=1)
        Fitted(prompt_ids=(1, 12), response_ids=(20, 21), n_cut=2)
        >>> fit((1, 10, 11, 12), (20, 21), max_length=5, truncate="right")
        Fitted(prompt_ids=(1, 10, 11, 12), response_ids=(20,), n_cut=1)
    """
    n_over = len(prompt_ids) + len(response_ids) - max_length
    if n_over <= 0:
        return Fitted(prompt_ids, response_ids, 0)
    if truncate == "drop":
        return None
    if truncate == "refuse":
        raise TooLongError(f"{len(prompt_ids) + len(response_ids)} tokens")
    if truncate == "response" and len(prompt_ids) > max_length:
        raise TooLongError(f"{len(prompt_ids)} tokens")
    if truncate == "left":
        n_head = min(n_head, max_length - 1)
        body = prompt_ids[n_head:]
        return Fitted(prompt_ids[:n_head] + body[n_over:], response_ids[max(0, n_over - len(body)) :], n_over)
    kept = prompt_ids[:max_length]
    return Fitted(kept, response_ids[: max_length - len(kept)], n_over)


def join(
    prompt: Prompt,
    prompt_ids: tuple[int, ...],
    response_ids: tuple[int, ...] = (),
    *,
    max_length: int,
    truncate: Truncate = "response",
    bos_id: int | None = None,
) -> TokenSequence | None:
    """Join a prompt and a response to one sequence of at most ``max_length`` tokens; None if ``truncate`` drops it.

    Truncation from the left keeps a leading BOS token, whose id is ``bos_id``.

    Raises:
        InputError: The sequence is too long, and ``truncate`` does not allow cutting it.
    """
    n_head = int(bos_id is not None and prompt_ids[:1] == (bos_id,))
    try:
        fitted = fit(prompt_ids, response_ids, max_length=max_length, truncate=truncate, n_head=n_head)
    except TooLongError as error:
        raise InputError(
            f"{prompt} has {error}, but the limit is {max_length}; shorten or remove it, or set cache.truncate."
        ) from None
    if fitted is None:
        return None
    return TokenSequence(prompt.id, prompt.id, prompt.task, None, *fitted, contents=(prompt.content_key,))


def pack(documents: Sequence[TokenSequence], *, end_id: int, max_length: int) -> list[TokenSequence]:
    """Fill sequences with whole documents; a document that does not fit starts the next sequence.

    Args:
        documents: Documents of at most ``max_length`` tokens.
        end_id: Id of the token between two documents; the last document has none after it.
        max_length: Maximum length of a sequence, in tokens.

    Returns:
        Sequences named after their first document, with ``documents`` set, even if they hold only one document.
    """
    packed, held, length = list[TokenSequence](), list[TokenSequence](), 0
    for document in documents:
        n_tokens = len(document.ids)
        if held and length + 1 + n_tokens > max_length:
            packed.append(_joined(held, end_id))
            held, length = [], 0
        length += n_tokens + (1 if held else 0)
        held.append(document)
    if held:
        packed.append(_joined(held, end_id))
    return packed


def _joined(held: Sequence[TokenSequence], end_id: int) -> TokenSequence:
    ids, documents = list[int](), list[Document]()
    for sequence in held:
        if ids:
            ids.append(end_id)
        lengths = len(sequence.prompt_ids), len(sequence.response_ids)
        documents.append(Document(sequence.id, sequence.task, len(ids), *lengths))
        ids += sequence.ids
    name = f"{held[0].id}+{len(held) - 1}"
    task = held[0].task if len({sequence.task for sequence in held}) == 1 else None
    n_cut = sum(sequence.n_cut for sequence in held)
    contents = tuple(key for sequence in held for key in sequence.contents)
    return TokenSequence(name, name, task, None, tuple(ids), (), n_cut, tuple(documents), contents)
