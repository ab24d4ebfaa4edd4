"""Bootstrap intervals of the class counts, over sequences and over features.

A class depends on decoder norms, which are fixed, and on nu, which is measured on rows. We resample whole sequences in groups
(a cluster bootstrap): consecutive sequences of the store, which are in random order, form groups of about equal size. The sums
of each group are kept apart, and the groups are drawn with replacement. The rows are read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from mechprobe.features.config import FeaturesConfig
from mechprobe.features.result import ClassIntervals
from mechprobe.features.table.classes import (
    DEAD,
    SHARED,
    UNCONFIRMED,
    class_counts,
    confirmed,
    decoder_gram,
    scaling_of,
)
from mechprobe.features.table.sums import FeatureSums
from mechprobe.statistics import Interval
from sae_training import Crosscoder


@dataclass(frozen=True)
class ClassEvidence:
    """The `FeatureSums` behind nu by group of sequences, for the ``claimed`` features: those that some model lacks by norms."""

    claimed: Int[Tensor, " claim"]
    f_square: Float[Tensor, "group claim"]
    dot_error: Float[Tensor, "group model model claim"]
    dot_reconstruction: Float[Tensor, "group model model claim"]
    n_sequences: int

    @classmethod
    def of(cls, sums: FeatureSums, claimed: Int[Tensor, " claim"], n_sequences: int) -> "ClassEvidence":
        """The evidence of one group."""
        f_square, error, reconstruction = (
            values[..., claimed].unsqueeze(0) for values in (sums.f_square, sums.dot_error, sums.dot_reconstruction)
        )
        return cls(claimed, f_square, error, reconstruction, n_sequences)

    def merge(self, other: "ClassEvidence") -> "ClassEvidence":
        """The groups of both; their sequences must be disjoint, and the crosscoder the same."""
        if not torch.equal(self.claimed, other.claimed):
            raise ValueError("evidence of different features cannot merge")
        f_square, error, reconstruction = (torch.cat(pair) for pair in zip(self.sums, other.sums, strict=True))
        return ClassEvidence(self.claimed, f_square, error, reconstruction, self.n_sequences + other.n_sequences)

    @property
    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums in the order that `scaling_of` takes."""
        return self.f_square, self.dot_error, self.dot_reconstruction


def sequence_groups(sample: Int[ndarray, " row"], rows: range, n_groups: int) -> list[range]:
    """Cut ``rows`` into at most ``n_groups`` runs of whole sequences, with about equally many rows each.

    Example:
        >>> sequence_groups(np.array([0, 0, 0, 1, 2, 2, 3, 3]), range(8), 2)
        [range(0, 4), range(4, 8)]
    """
    if not len(rows):
        return []
    starts = sequence_starts(sample, rows)
    wanted = rows.start + np.arange(1, n_groups) * len(rows) / n_groups
    cuts = starts[np.minimum(np.searchsorted(starts, wanted), len(starts) - 1)]
    edges = [rows.start, *sorted({int(cut) for cut in cuts} - {rows.start}), rows.stop]
    return [range(first, last) for first, last in pairwise(edges)]


def sequence_starts(sample: Int[ndarray, " row"], rows: range) -> Int[ndarray, " sequence"]:
    """First row of every sequence in ``rows``; a sequence that ``rows`` cuts starts at its first row there."""
    ids = np.asarray(sample[rows.start : rows.stop])
    return rows.start + np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))


def class_intervals(
    crosscoder: Crosscoder,
    evidence: ClassEvidence,
    norms: Float[ndarray, "d_sae model"],
    by_norm: Sequence[str],
    config: FeaturesConfig,
) -> ClassIntervals:
    """Bootstrap the class counts, from the L1 decoder norms in scaled units and the class of every feature by norms alone."""
    draws, rng = config.bootstrap_draws, np.random.default_rng([config.seed, 7])
    order = list(class_counts([*by_norm, UNCONFIRMED], crosscoder.model_names))
    number = {name: index for index, name in enumerate(order)}
    code = np.array([number[name] for name in by_norm], dtype=np.int64)
    claimed = evidence.claimed.cpu().numpy()
    fixed = np.bincount(np.delete(code, claimed), minlength=len(order))
    without_claim = np.isin(code[claimed], [number[SHARED], number[DEAD]])
    gram, norms = decoder_gram(crosscoder)[..., evidence.claimed], norms[claimed]
    n_groups = len(evidence.f_square)

    def count(weights: Float[ndarray, " group"]) -> Int[ndarray, " class"]:
        weight = torch.from_numpy(weights).to(evidence.f_square)
        scaling = scaling_of(gram, *(torch.tensordot(weight, values, dims=1) for values in evidence.sums))
        agrees = confirmed(norms, scaling, config.thresholds) | without_claim
        return fixed + np.bincount(np.where(agrees, code[claimed], number[UNCONFIRMED]), minlength=len(order))

    point = count(np.ones(n_groups))
    sequences, features = (np.zeros((draws, len(order)), dtype=np.int64) for _ in range(2))
    for draw in range(draws):
        sequences[draw] = count(rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups)).astype(np.float64))
        features[draw] = rng.multinomial(len(code), sequences[draw] / len(code))
    return ClassIntervals(
        sequences=_intervals(order, point, sequences, evidence.n_sequences),
        latents=_intervals(order, point, features, evidence.n_sequences),
        n_groups=n_groups,
        draws=draws,
    )


def _intervals(
    order: Sequence[str], point: Int[ndarray, " class"], draws: Int[ndarray, "draw class"], n: int
) -> dict[str, Interval]:
    numbers = np.stack([point, *np.quantile(draws, [0.025, 0.975], axis=0)], axis=1).tolist()
    return {name: Interval(value, low, high, n) for name, (value, low, high) in zip(order, numbers, strict=True)}
