"""The token stream: which tokens of which sequences are cached, in which order, and in which shards.

It is a pure function of the sequences and the settings. All models of a family share one stream, so that row ``i`` is the
same token in the same context for every model.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from mechprobe.data.tokens import TokenSequence
from mechprobe.errors import InputError
from mechprobe.progress import tell_once

ROW_COLUMNS = ("token_id", "sample", "position", "is_response", "held_out")
"""Columns of `TokenRows`."""


@dataclass(frozen=True)
class TokenRows:
    """Token, place and split of every row of the store.

    Attributes:
        token_id: Id of the token.
        sample: Index of its sequence.
        position: Position in the sequence, counting special tokens.
        is_response: Whether the token belongs to a response.
        held_out: Whether its prompt (or its packed sequence) is excluded from training.
    """

    token_id: Int[np.ndarray, " row"]
    sample: Int[np.ndarray, " row"]
    position: Int[np.ndarray, " row"]
    is_response: Bool[np.ndarray, " row"]
    held_out: Bool[np.ndarray, " row"]

    def __len__(self) -> int:
        return len(self.token_id)


@dataclass(frozen=True, slots=True)
class ShardRange:
    """Sequences and rows of one shard; every sequence lies in exactly one shard."""

    index: int
    sequences: range
    rows: range


@dataclass(frozen=True)
class TokenStream:
    """Sequences in stream order, their kept rows, and the shards.

    Attributes:
        sequences: Sequences in stream order; ``sample`` of a row is an index into them.
        rows: The kept tokens, in order.
        row_start: First row of each sequence, followed by the number of rows.
        shards: Consecutive ranges of whole sequences.
        tokenizer_fingerprint: sha256 of the tokenizer that produced the ids.
    """

    sequences: Sequence[TokenSequence]
    rows: TokenRows
    row_start: Int[np.ndarray, " n_samples_plus_1"]
    shards: tuple[ShardRange, ...]
    tokenizer_fingerprint: str

    @property
    def n_rows(self) -> int:
        """Number of kept tokens."""
        return len(self.rows)

    @cached_property
    def hash(self) -> str:
        """sha256 over all ids, rows and shard boundaries, the names of the sequences, and the tokenizer."""
        digest = hashlib.sha256(self.tokenizer_fingerprint.encode())
        for sequence in self.sequences:
            digest.update(f"\n{sequence.id}\n{len(sequence.prompt_ids)}\n".encode())
            digest.update(np.asarray(sequence.ids, dtype="<i4").tobytes())
            if sequence.documents:
                digest.update(json.dumps(sequence.documents, ensure_ascii=False).encode())
        for name in ROW_COLUMNS:
            digest.update(name.encode() + getattr(self.rows, name).tobytes())
        digest.update(np.asarray([shard.rows.stop for shard in self.shards], dtype="<i8").tobytes())
        return digest.hexdigest()

    @property
    def shard_hashes(self) -> list[str]:
        """sha256 of each shard, over the ids of its sequences and the ids and positions of its rows."""
        hashes = []
        for shard in self.shards:
            digest = hashlib.sha256()
            for index in shard.sequences:
                ids = np.asarray(self.sequences[index].ids, dtype="<i4")
                digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
            for column in (self.rows.token_id, self.rows.position):
                digest.update(np.ascontiguousarray(column[shard.rows.start : shard.rows.stop], dtype="<i4").tobytes())
            hashes.append(digest.hexdigest())
        return hashes

    def document_of(self, row: int) -> tuple[str, int]:
        """Id of the prompt of a row, and the position of the row in that document, whether packed or not."""
        sequence, position = self.sequences[self.rows.sample[row]], int(self.rows.position[row])
        if not sequence.documents:
            return sequence.prompt_id, position
        document = sequence.documents[sequence.document_index[position]]
        return document.id, position - document.start


def kept_positions(
    sequence: TokenSequence, special_ids: Iterable[int], drop_first_positions: int = 0
) -> Int[np.ndarray, " kept"]:
    """Positions of a sequence that become rows; special tokens and the first positions do not."""
    ids = np.asarray(sequence.ids, dtype=np.int32)
    kept = ~np.isin(ids, np.fromiter(special_ids, dtype=np.int32))
    kept[:drop_first_positions] = False
    return np.flatnonzero(kept).astype(np.int32)


def build_stream(
    sequences: Sequence[TokenSequence],
    *,
    special_ids: Iterable[int],
    tokenizer_fingerprint: str,
    seed: int = 0,
    max_tokens: int | None = None,
    held_out_frac: float = 0.05,
    shard_rows: int = 32768,
    drop_first_positions: int = 0,
) -> TokenStream:
    """Permute the sequences, keep rows, hold out prompts, and divide the rows into shards.

    Args:
        sequences: At least one sequence.
        special_ids: Tokens that the models process but that become no rows (BOS, padding, chat markers).
        tokenizer_fingerprint: Fingerprint of the tokenizer that produced the ids.
        seed: Seed of the permutation and of the held-out split.
        max_tokens: Largest number of rows. Sequences are taken whole until the next one would exceed it; None takes all.
        held_out_frac: Fraction of the *prompts* to exclude from training. Prompts that say the same under several ids are
            excluded together, so that no text is in both splits; the fraction is then the nearest below.
        shard_rows: Largest number of rows in a shard; a longer sequence has its own shard.
        drop_first_positions: Number of leading positions of each sequence that become no rows (attention sinks).

    Raises:
        InputError: No row is left.
    """
    special = sorted(set(special_ids))
    order = np.random.default_rng([seed, 1]).permutation(len(sequences))
    chosen, positions, n_rows = list[TokenSequence](), list[np.ndarray](), 0
    for index in order:
        kept = kept_positions(sequences[index], special, drop_first_positions)
        if max_tokens is not None and n_rows + len(kept) > max_tokens:
            break
        if len(kept):
            chosen.append(sequences[index])
            positions.append(kept)
            n_rows += len(kept)
    if not chosen:
        raise InputError(
            "No token is left to cache, because every token is special or dropped, or max_tokens is shorter than the first "
            "sequence; raise max_tokens, or lower drop_first_positions."
        )
    held_out = _held_out(chosen, held_out_frac, seed)
    row_start = np.concatenate([[0], np.cumsum([len(kept) for kept in positions])]).astype(np.int64)
    return TokenStream(
        sequences=tuple(chosen),
        rows=_rows(chosen, positions, held_out),
        row_start=row_start,
        shards=divide_rows(row_start, shard_rows),
        tokenizer_fingerprint=tokenizer_fingerprint,
    )


def _held_out(sequences: Sequence[TokenSequence], frac: float, seed: int) -> Sequence[bool]:
    """Whether each sequence is held out. Sequences whose prompts say the same are held out together.

    Groups of such sequences are permuted and held out while their prompts fit ``frac`` of all prompts, at least one group.
    """
    if frac <= 0:
        return [False] * len(sequences)
    group = _connected([(f"id {s.prompt_id}", *s.contents) for s in sequences])
    names: dict[int, set[str]] = {}
    for sequence, number in zip(sequences, group, strict=True):
        names.setdefault(number, set()).add(sequence.prompt_id)
    groups = sorted(names, key=lambda number: min(names[number]))
    if len(groups) < 2:
        if len(sequences) > 1:
            tell_once("All sequences share one prompt, so none is held out from training.")
        return [False] * len(sequences)
    n_prompts = sum(len(ids) for ids in names.values())
    wanted = min(n_prompts - 1, max(1, round(frac * n_prompts)))
    held_out, n_held_out = set[int](), 0
    order = [groups[index] for index in np.random.default_rng([seed, 2]).permutation(len(groups))]
    for number in order:
        if n_held_out + len(names[number]) <= wanted:
            held_out.add(number)
            n_held_out += len(names[number])
    held_out = held_out or {min(order, key=lambda number: len(names[number]))}
    return [number in held_out for number in group]


def _connected(keys: Sequence[Sequence[str]]) -> list[int]:
    """For each item the first item that it is connected with; items that share a key are connected."""
    parent, owner = list(range(len(keys))), dict[str, int]()

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for item, own in enumerate(keys):
        for key in own:
            first, second = sorted((root(owner.setdefault(key, item)), root(item)))
            parent[second] = first
    return [root(item) for item in range(len(keys))]


def _rows(sequences: Sequence[TokenSequence], positions: Sequence[np.ndarray], held_out: Sequence[bool]) -> TokenRows:
    lengths = [len(kept) for kept in positions]
    whole = [np.asarray(sequence.ids, dtype=np.int32) for sequence in sequences]
    return TokenRows(
        token_id=np.concatenate([ids[kept] for ids, kept in zip(whole, positions, strict=True)]),
        sample=np.repeat(np.arange(len(sequences), dtype=np.int32), lengths),
        position=np.concatenate(positions),
        is_response=np.concatenate([s.is_response[kept] for s, kept in zip(sequences, positions, strict=True)]),
        held_out=np.repeat(np.asarray(held_out, dtype=bool), lengths),
    )


def divide_rows(row_start: np.ndarray, shard_rows: int, leading: Sequence[ShardRange] = ()) -> tuple[ShardRange, ...]:
    """``leading``, and shards of the sequences behind them with at most ``shard_rows`` rows, or with one sequence."""
    shards = list(leading)
    first = shards[-1].sequences.stop if shards else 0
    while first < len(row_start) - 1:
        last = int(np.searchsorted(row_start, row_start[first] + shard_rows, side="right")) - 1
        last = max(last, first + 1)
        rows = range(int(row_start[first]), int(row_start[last]))
        shards.append(ShardRange(len(shards), range(first, last), rows))
        first = last
    return tuple(shards)
