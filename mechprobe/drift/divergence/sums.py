"""Sums of divergences per sequence, token class and bucket: all that is kept of the positions, so that any breakdown is exact."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.drift.divergence.columns import BUCKETS, CLASSES, COLUMNS, RANK_BINS
from mechprobe.drift.divergence.distances import PositionDivergences

Kind = Literal["raised", "lowered", "shifted"]
KINDS: tuple[Kind, ...] = ("raised", "lowered", "shifted")
_ID_BITS = 48


@dataclass(frozen=True)
class CellSums:
    """Sums of one model over cells, sorted by key; a cell is (sequence, class, bucket).

    Attributes:
        keys: Index of the sequence in the stream, of the class in `CLASSES`, and of the bucket in `BUCKETS`.
        sums: Sums of `COLUMNS`.
    """

    keys: Int[ndarray, "cell 3"]
    sums: Float[ndarray, "cell column"]

    @classmethod
    def of(
        cls,
        found: PositionDivergences,
        sequence: Int[ndarray, " position"],
        token_class: Int[ndarray, " position"],
        bucket: Int[ndarray, " position"],
    ) -> "CellSums":
        """Add up the positions of each cell."""
        values = np.concatenate([_numbers(found), _bins(found.rank_base.numpy()), _bins(found.rank.numpy())], axis=1)
        flat = (sequence * len(CLASSES) + token_class) * len(BUCKETS) + bucket
        cells, place = np.unique(flat, return_inverse=True)
        sums = np.zeros((len(cells), len(COLUMNS)))
        np.add.at(sums, place, values)
        keys = [cells // (len(CLASSES) * len(BUCKETS)), cells // len(BUCKETS) % len(CLASSES), cells % len(BUCKETS)]
        return cls(np.stack(keys, axis=1).astype(np.int64), sums)

    @classmethod
    def joined(cls, parts: "Sequence[CellSums]") -> "CellSums":
        """The cells of several parts, which share no sequence, sorted by key."""
        keys = np.concatenate([part.keys for part in parts] or [np.zeros((0, 3), dtype=np.int64)])
        sums = np.concatenate([part.sums for part in parts] or [np.zeros((0, len(COLUMNS)))])
        order = np.lexsort(keys.T[::-1])
        return cls(keys[order], sums[order])


def _numbers(found: PositionDivergences) -> Float[ndarray, "position number"]:
    log_ratio = found.log_prob - found.log_prob_base
    columns = [
        found.kl.new_ones(len(found.kl)), found.kl, found.kl_reverse, found.js, found.tv, found.agree.double(), found.entropy,
        found.entropy_base, log_ratio, (-log_ratio).expm1() + log_ratio, found.outside, found.outside_base,
    ]  # fmt: skip
    return np.stack([column.numpy() for column in columns], axis=1)


def _bins(rank: Int[ndarray, " position"]) -> Float[ndarray, "position bin"]:
    return np.eye(len(RANK_BINS))[np.searchsorted(RANK_BINS, rank, side="right") - 1]


@dataclass(frozen=True)
class TokenCounts:
    """How often tokens are among those that change most, of one model in one source; sorted by kind and id.

    Attributes:
        keys: Index of the kind in `KINDS`, and id of the token.
        counts: Number of times, and sum of the numbers: of logit differences (``raised``, ``lowered``), or of the ranks under base of
            realised tokens that are not base's most probable (``shifted``).
    """

    keys: Int[ndarray, "entry 2"]
    counts: Float[ndarray, "entry 2"]

    @classmethod
    def of(cls, found: PositionDivergences, target: Int[ndarray, " position"]) -> "TokenCounts":
        """Count the tokens of some positions."""
        shifted = found.rank_base.numpy() > 1
        given = [
            (found.raised_ids.numpy().ravel(), found.raised.numpy().ravel()),
            (found.lowered_ids.numpy().ravel(), found.lowered.numpy().ravel()),
            (target[shifted], found.rank_base.numpy()[shifted].astype(np.float64)),
        ]
        keys = [np.stack([np.full(len(ids), kind), ids], axis=1) for kind, (ids, _) in enumerate(given)]
        values = [np.stack([np.ones(len(own)), own], axis=1) for _, own in given]
        return cls._added(np.concatenate(keys), np.concatenate(values))

    @classmethod
    def joined(cls, parts: "Iterable[TokenCounts]") -> "TokenCounts":
        """The counts of several parts together."""
        known = list(parts)
        keys = [part.keys for part in known] or [np.zeros((0, 2), dtype=np.int64)]
        return cls._added(np.concatenate(keys), np.concatenate([part.counts for part in known] or [np.zeros((0, 2))]))

    @classmethod
    def _added(cls, keys: ndarray, values: ndarray) -> "TokenCounts":
        # one number for each pair, because unique rows take ten times as long
        pairs, place = np.unique((keys[:, 0] << _ID_BITS) | keys[:, 1], return_inverse=True)
        counts = [np.bincount(place, weights=column, minlength=len(pairs)) for column in values.T]
        return cls(np.stack([pairs >> _ID_BITS, pairs & ((1 << _ID_BITS) - 1)], axis=1), np.stack(counts, axis=1))

    def leading(self, kind: Kind, n: int) -> list[tuple[int, int, float]]:
        """(id, count, mean) of the ``n`` most frequent tokens of a kind; of equal counts the lower id comes first."""
        rows = np.flatnonzero(self.keys[:, 0] == KINDS.index(kind))
        order = rows[np.lexsort((self.keys[rows, 1], -self.counts[rows, 0]))][:n]
        return [
            (int(self.keys[i, 1]), int(self.counts[i, 0]), float(self.counts[i, 1] / self.counts[i, 0])) for i in order
        ]


def arrays_of(cells: CellSums, tokens: Mapping[str, TokenCounts]) -> dict[str, ndarray]:
    """Both as named arrays of a file; ``tokens`` by source."""
    named = {f"{source}/{name}": getattr(part, name) for source, part in tokens.items() for name in ("keys", "counts")}
    return {"keys": cells.keys, "sums": cells.sums, **named}


def of_arrays(arrays: Mapping[str, ndarray]) -> tuple[CellSums, dict[str, TokenCounts]]:
    """The inverse of `arrays_of`."""
    sources = [name.removesuffix("/keys") for name in arrays if name.endswith("/keys")]
    tokens = {source: TokenCounts(arrays[f"{source}/keys"], arrays[f"{source}/counts"]) for source in sources}
    return CellSums(arrays["keys"], arrays["sums"]), tokens
