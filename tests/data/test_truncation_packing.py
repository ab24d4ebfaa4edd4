"""Truncation and packing: lengths, boundaries and masks for every shape of prompt and response."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechprobe.data.lengths import TooLongError, fit, join, pack
from mechprobe.data.prompts import Prompt
from mechprobe.data.stream import build_stream
from mechprobe.data.tokens import TokenSequence
from mechprobe.errors import InputError

PAD, BOS, END = 0, 1, 2


@given(st.integers(1, 12), st.integers(0, 12), st.integers(2, 14), st.booleans())
def test_truncation_keeps_the_right_tokens(n_prompt: int, n_response: int, limit: int, bos: bool) -> None:
    prompt, response = tuple(range(100, 100 + n_prompt)), tuple(range(200, 200 + n_response))
    whole, n_head = prompt + response, int(bos)
    n_over = max(0, len(whole) - limit)
    right = fit(prompt, response, max_length=limit, truncate="right")
    left = fit(prompt, response, max_length=limit, truncate="left", n_head=n_head)
    assert right is not None
    assert left is not None
    assert right.prompt_ids + right.response_ids == whole[:limit]
    if n_over:
        assert left.prompt_ids + left.response_ids == whole[:n_head] + whole[len(whole) - limit + n_head :]
        assert fit(prompt, response, max_length=limit, truncate="drop") is None
        with pytest.raises(TooLongError, match=f"{len(whole)} tokens"):
            fit(prompt, response, max_length=limit, truncate="refuse")
    for fitted in (right, left):
        assert fitted.n_cut == n_over == len(whole) - len(fitted.prompt_ids + fitted.response_ids)
        assert set(fitted.prompt_ids) <= set(prompt)
        assert set(fitted.response_ids) <= set(response)
    if n_prompt > limit:
        with pytest.raises(TooLongError, match=f"{n_prompt} tokens"):
            fit(prompt, response, max_length=limit, truncate="response")
    else:
        assert fit(prompt, response, max_length=limit, truncate="response") == right


def test_a_sequence_that_is_too_long_is_an_error_with_place_and_lengths() -> None:
    with pytest.raises(InputError, match=r"a.jsonl:4: prompt 'x'.* 5 tokens.* 4"):
        join(Prompt("x", "p", where="a.jsonl:4"), (1, 2, 3), (4, 5), max_length=4, truncate="refuse")


DOCUMENTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=30).map(
    lambda shapes: [
        TokenSequence(
            f"d{i}", f"d{i}", "t", None, (BOS, *range(10, 9 + n)), tuple(range(50, 50 + m)), n_cut=i % 2
        )
        for i, (n, m) in enumerate(shapes)
    ]
)  # fmt: skip


@given(DOCUMENTS, st.integers(10, 40))
@settings(deadline=None)
def test_packing_keeps_every_document_whole_and_records_its_place(documents: list[TokenSequence], limit: int) -> None:
    packed = pack(documents, end_id=END, max_length=limit)
    found = []
    for sequence in packed:
        assert len(sequence.ids) <= limit
        assert sequence.ids[-1] != END
        index = sequence.document_index
        assert (np.flatnonzero(index == -1) == [d.start - 1 for d in sequence.documents[1:]]).all()
        for number, document in enumerate(sequence.documents):
            where = index == number
            ids, mask = np.asarray(sequence.ids)[where], sequence.is_response[where]
            assert where.nonzero()[0][0] == document.start
            found.append((document.id, tuple(ids[~mask].tolist()), tuple(ids[mask].tolist())))
    assert found == [(d.id, d.prompt_ids, d.response_ids) for d in documents]
    assert sum(s.n_cut for s in packed) == sum(d.n_cut for d in documents)
    # No sequence ends too early: the first document of the next one would not fit.
    for before, after in itertools.pairwise(packed):
        first = after.documents[0]
        assert len(before.ids) + 1 + first.n_prompt + first.n_response > limit


@given(DOCUMENTS, st.integers(10, 40), st.integers(0, 3))
@settings(deadline=None)
def test_rows_of_packed_documents(documents: list[TokenSequence], limit: int, seed: int) -> None:
    packed = pack(documents, end_id=END, max_length=limit)
    expected = {
        (d.id, place, token, place >= len(d.prompt_ids))
        for d in documents
        for place, token in enumerate(d.ids)
        if token != BOS
    }
    if not expected:
        return
    stream = build_stream(packed, special_ids=[PAD, BOS, END], tokenizer_fingerprint="t", seed=seed, held_out_frac=0.4)
    rows = [
        (*stream.document_of(row), int(stream.rows.token_id[row]), bool(stream.rows.is_response[row]))
        for row in range(stream.n_rows)
    ]
    assert len(rows) == len(expected)
    assert set(rows) == expected
    side = {stream.document_of(row)[0]: set() for row in range(stream.n_rows)}
    for row in range(stream.n_rows):
        side[stream.document_of(row)[0]].add(bool(stream.rows.held_out[row]))
    assert all(len(values) == 1 for values in side.values())


def test_document_boundaries_are_in_the_hash_of_the_stream() -> None:
    def stream_hash(n: int) -> str:
        pieces = [TokenSequence(f"d{i}", f"d{i}", None, None, (10,) * k, ()) for i, k in enumerate((n, 6 - n))]
        (one,) = pack(pieces, end_id=10, max_length=20)
        return build_stream([one], special_ids=[0], tokenizer_fingerprint="t").hash

    assert stream_hash(2) != stream_hash(3)
