"""The token stream: its rows, their order, and their shard and split."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechprobe.data.lengths import join, pack
from mechprobe.data.prompts import Prompt
from mechprobe.data.stream import TokenStream, build_stream
from mechprobe.data.tokens import TokenSequence
from mechprobe.errors import InputError

BOS = 1


def sequence(identifier: str, n_prompt: int = 4, n_response: int = 2, start: int = 10) -> TokenSequence:
    ids = tuple(range(start, start + n_prompt - 1))
    return TokenSequence(identifier, identifier, None, None, (BOS, *ids), tuple(range(50, 50 + n_response)))


def stream_of(sequences: list[TokenSequence], **options: object) -> TokenStream:
    return build_stream(sequences, special_ids=[0, BOS, 2], tokenizer_fingerprint="t", **options)


SEQUENCES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=40).map(
    lambda shapes: [sequence(f"s{index}", *shape) for index, shape in enumerate(shapes)]
)


@given(SEQUENCES, st.integers(0, 5), st.integers(1, 40), st.floats(0, 0.9), st.integers(0, 3))
@settings(deadline=None, max_examples=100)
def test_every_kept_token_is_a_row_exactly_once(
    sequences: list[TokenSequence], seed: int, shard_rows: int, held_out_frac: float, dropped: int
) -> None:
    options = {"seed": seed, "shard_rows": shard_rows, "held_out_frac": held_out_frac, "drop_first_positions": dropped}
    expected = {
        (s.id, position, token, position >= len(s.prompt_ids))
        for s in sequences
        for position, token in enumerate(s.prompt_ids + s.response_ids)
        if token != BOS and position >= dropped
    }
    if not expected:
        with pytest.raises(InputError, match="No token is left"):
            stream_of(sequences, **options)
        return
    stream = stream_of(sequences, **options)
    rows = stream.rows
    found = [
        (stream.sequences[sample].id, position, token, is_response)
        for sample, position, token, is_response in zip(
            rows.sample.tolist(), rows.position.tolist(), rows.token_id.tolist(), rows.is_response.tolist(), strict=True
        )
    ]
    assert len(found) == len(expected)
    assert set(found) == expected
    assert (np.diff(rows.sample) >= 0).all()
    # Shards hold whole sequences, in order and without gaps, and exceed the limit only for a single long sequence.
    assert [shard.rows.start for shard in stream.shards] == [0, *(shard.rows.stop for shard in stream.shards[:-1])]
    assert stream.shards[-1].rows.stop == stream.n_rows
    assert all(len(shard.rows) <= shard_rows or len(shard.sequences) == 1 for shard in stream.shards)
    assert [i for shard in stream.shards for i in shard.sequences] == list(range(len(stream.sequences)))
    # The split is by prompt, and never holds out everything.
    assert not rows.held_out.all()
    for sample in range(len(stream.sequences)):
        assert len(set(rows.held_out[rows.sample == sample].tolist())) == 1


def test_sequences_of_one_prompt_are_in_one_split() -> None:
    sequences = [
        TokenSequence(f"p{prompt}#{source}", f"p{prompt}", None, source, (BOS, 10, 11), (20, 21))
        for prompt in range(30)
        for source in ("base@1.0", "rl@0.0")
    ]
    stream = stream_of(sequences, held_out_frac=0.3)
    side = {}
    for row in range(stream.n_rows):
        prompt = stream.sequences[stream.rows.sample[row]].prompt_id
        assert side.setdefault(prompt, bool(stream.rows.held_out[row])) == bool(stream.rows.held_out[row])
    assert sum(side.values()) == 9


def test_the_seed_permutes_and_the_hash_shows_every_change() -> None:
    sequences = [sequence(f"s{index}", start=10 + index) for index in range(20)]
    one, same, other = stream_of(sequences), stream_of(sequences), stream_of(sequences, seed=1)
    assert [s.id for s in one.sequences] == [s.id for s in same.sequences]
    assert [s.id for s in one.sequences] != [s.id for s in sequences]
    assert [s.id for s in one.sequences] != [s.id for s in other.sequences]
    assert one.hash == same.hash != other.hash
    changed = [*sequences[:-1], sequence("s19", start=99)]
    assert stream_of(changed).hash != one.hash
    assert build_stream(sequences, special_ids=[0, BOS, 2], tokenizer_fingerprint="u").hash != one.hash


@given(
    prompts=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60),
    frac=st.floats(0.01, 0.9),
    seed=st.integers(0, 9),
)
@settings(deadline=None)
def test_prompts_that_say_the_same_are_held_out_together(prompts: list[str], frac: float, seed: int) -> None:
    sequences = [replace(sequence(f"s{i}"), contents=(text,)) for i, text in enumerate(prompts)]
    stream = stream_of(sequences, held_out_frac=frac, seed=seed)
    held_out: dict[str, set[bool]] = {}
    for one, first in zip(stream.sequences, stream.row_start[:-1], strict=True):
        held_out.setdefault(one.contents[0], set()).add(bool(stream.rows.held_out[first]))
    assert all(len(sides) == 1 for sides in held_out.values())
    sizes = {text: prompts.count(text) for text in held_out}
    n_held_out = sum(sizes[text] for text, sides in held_out.items() if sides == {True})
    wanted = min(len(prompts) - 1, max(1, round(frac * len(prompts))))
    if len(sizes) == 1:
        assert n_held_out == 0
    elif min(sizes.values()) > wanted:
        assert n_held_out == min(sizes.values())
    else:
        assert 0 < n_held_out <= wanted
    assert any(sides == {False} for sides in held_out.values())


def test_packed_documents_that_say_the_same_are_on_one_side() -> None:
    documents = [join(Prompt(f"d{i}", f"text {i % 30}"), (9, 10 + i % 30, 11), max_length=30) for i in range(40)]
    packed = pack([document for document in documents if document], end_id=2, max_length=8)
    stream = build_stream(packed, special_ids=[2], tokenizer_fingerprint="t", held_out_frac=0.3)
    sides: dict[int, set[bool]] = {}
    for row in range(stream.n_rows):
        name, _ = stream.document_of(row)
        sides.setdefault(int(name[1:]) % 30, set()).add(bool(stream.rows.held_out[row]))
    assert all(len(side) == 1 for side in sides.values())
    assert {True, False} == set().union(*sides.values())


def test_max_tokens_takes_whole_sequences() -> None:
    sequences = [sequence(f"s{index}") for index in range(20)]  # five rows each
    assert stream_of(sequences, max_tokens=23).n_rows == 20
    assert stream_of(sequences, max_tokens=25).n_rows == 25
    with pytest.raises(InputError, match="max_tokens"):
        stream_of(sequences, max_tokens=4)


def test_a_response_that_does_not_fit_is_cut_and_counted() -> None:
    joined = join(Prompt("a", "x"), (1, 2, 3), (4, 5, 6), max_length=5)
    assert joined == TokenSequence("a", "a", None, None, (1, 2, 3), (4, 5), 1)


def test_the_hash_of_a_shard_depends_on_its_own_tokens_only() -> None:
    sequences = [sequence(f"s{index}", start=10 + index) for index in range(12)]
    one = stream_of(sequences, shard_rows=10)
    assert len(one.shard_hashes) == len(one.shards) > 2
    changed = [sequence("s3", start=99) if item.id == "s3" else item for item in sequences]
    pairs = zip(one.shards, one.shard_hashes, stream_of(changed, shard_rows=10).shard_hashes, strict=True)
    differ = [any(one.sequences[i].id == "s3" for i in shard.sequences) for shard, _, _ in pairs]
    other = stream_of(changed, shard_rows=10).shard_hashes
    assert [a != b for a, b in zip(one.shard_hashes, other, strict=True)] == differ


def test_a_stream_of_special_tokens_only_is_an_error() -> None:
    with pytest.raises(InputError, match="No token is left"):
        stream_of([TokenSequence("a", "a", None, None, (BOS,), (2,))])
