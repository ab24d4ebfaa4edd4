"""Packing of several documents into one sequence, as in pre-training corpora.

Documents are kept whole and in order, with an end token between them. A packed sequence is an ordinary sequence to the
models: attention reaches earlier documents, and positions count on. The place of each document is recorded.
"""

from collections.abc import Sequence

from mechprobe.data.tokens import Document, TokenSequence


def pack(documents: Sequence[TokenSequence], *, end_id: int, max_length: int) -> list[TokenSequence]:
    """Fill sequences with whole documents; a document that does not fit starts the next sequence.

    Args:
        documents: Documents of at most ``max_length`` tokens.
        end_id: Id of the token between two documents; the last document has none after it.
        max_length: Length of the longest sequence, in tokens.

    Returns:
        Sequences named after their first document, with ``documents`` set, even if they hold only one document.
    """
    packed: list[TokenSequence] = []
    held: list[TokenSequence] = []
    length = 0
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
    ids: list[int] = []
    documents = []
    for sequence in held:
        if ids:
            ids.append(end_id)
        documents.append(
            Document(sequence.id, sequence.task, len(ids), len(sequence.prompt_ids), len(sequence.response_ids))
        )
        ids += sequence.ids
    name = f"{held[0].id}+{len(held) - 1}"
    return TokenSequence(
        id=name,
        prompt_id=name,
        task=held[0].task if len({sequence.task for sequence in held}) == 1 else None,
        source=None,
        prompt_ids=tuple(ids),
        response_ids=(),
        n_cut=sum(sequence.n_cut for sequence in held),
        documents=tuple(documents),
    )
