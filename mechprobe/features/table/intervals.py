"""How far the count of each class depends on the sequences that were read, and on the latents there are.

A class hangs on decoder norms, which are the dictionary's, and on nu, which is measured on rows. The bootstrap draws
whole sequences again, in groups: consecutive sequences of a store, which lie in random order, form ``n_groups`` groups of
about equal size, whose sums are kept apart and drawn with replacement (a cluster bootstrap; ours). The rows are read once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from mechprobe.features.config import ClassThresholds, FeaturesConfig
from mechprobe.features.table.classes import DEAD, SHARED, UNCONFIRMED, class_counts, confirmed
from mechprobe.features.table.scaling import decoder_gram, scaling_of
from mechprobe.features.table.sums import LatentSums
from mechprobe.statistics import Interval
from sae_training import Crosscoder


@dataclass(frozen=True)
class ClassEvidence:
    """What nu is made of, for each group of sequences, of the latents whose class claims that a model lacks them.

    Attributes:
        claimed: Their ids.
        f_square: Sum of f² under the joint read-out.
        dot_error: As in `LatentSums`.
        dot_reconstruction: As in `LatentSums`.
        n_sequences: Sequences in all groups.
    """

    claimed: Int[Tensor, " claim"]
    f_square: Float[Tensor, "group claim"]
    dot_error: Float[Tensor, "group model model claim"]
    dot_reconstruction: Float[Tensor, "group model model claim"]
    n_sequences: int

    @classmethod
    def of(cls, sums: LatentSums, claimed: Int[Tensor, " claim"], n_sequences: int) -> "ClassEvidence":
        """From the sums of one group."""
        f_square, error, reconstruction = (
            values[..., claimed].unsqueeze(0) for values in (sums.f_square, sums.dot_error, sums.dot_reconstruction)
        )
        return cls(claimed, f_square, error, reconstruction, n_sequences)

    def merge(self, other: "ClassEvidence") -> "ClassEvidence":
        """The groups of both, which must be of disjoint sequences and of one crosscoder."""
        if not torch.equal(self.claimed, other.claimed):
            raise ValueError("evidence of different latents cannot merge")
        return ClassEvidence(
            self.claimed,
            torch.cat([self.f_square, other.f_square]),
            torch.cat([self.dot_error, other.dot_error]),
            torch.cat([self.dot_reconstruction, other.dot_reconstruction]),
            self.n_sequences + other.n_sequences,
        )


@dataclass(frozen=True)
class ClassIntervals:
    """95 % percentile intervals of every class count; ``n`` of each is the number of sequences.

    Attributes:
        sequences: Sequences drawn again. What decoder norms alone decide (``shared``, ``dead``) cannot move.
        latents: Latents drawn again as well: how far counts lie apart that differ by the accident of which latents a
            training found. The interval for a comparison of one class with another.
        n_groups: Groups of sequences that were drawn.
        draws: Bootstrap draws.
    """

    sequences: dict[str, Interval]
    latents: dict[str, Interval]
    n_groups: int
    draws: int

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> "ClassIntervals | None":
        """What ``dataclasses.asdict`` gave, read back from a file."""
        if value is None:
            return None
        sequences, latents = (
            {name: Interval(*interval) for name, interval in value[kind].items()} for kind in ("sequences", "latents")
        )
        return cls(sequences, latents, value["n_groups"], value["draws"])


def sequence_groups(sample: Int[ndarray, " row"], rows: range, n_groups: int) -> list[range]:
    """Cut ``rows`` into at most ``n_groups`` runs of whole sequences, of about as many rows each.

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
    """First row of every sequence in ``rows``, which begin one themselves or go on with one."""
    ids = np.asarray(sample[rows.start : rows.stop])
    return rows.start + np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))


def class_intervals(
    crosscoder: Crosscoder,
    evidence: ClassEvidence,
    norms: Float[ndarray, "d_sae model"],
    by_norm: Sequence[str],
    config: FeaturesConfig,
) -> ClassIntervals:
    """Bootstrap the class counts.

    Args:
        crosscoder: The dictionary.
        evidence: Sums of every group of sequences.
        norms: Decoder norms, each model's activations divided by its scale.
        by_norm: Class of every latent by norms alone.
        config: Thresholds, number of draws and seed.
    """
    draws, rng = config.bootstrap_draws, np.random.default_rng([config.seed, 7])
    order = list(class_counts([*by_norm, UNCONFIRMED], crosscoder.model_names))
    place = {name: number for number, name in enumerate(order)}
    code = np.array([place[name] for name in by_norm], dtype=np.int64)
    claimed = evidence.claimed.cpu().numpy()
    fixed = np.bincount(np.delete(code, claimed), minlength=len(order))
    kept_out = np.isin(code[claimed], [place[SHARED], place[DEAD]])
    counted = _Counted(evidence, decoder_gram(crosscoder)[..., evidence.claimed], norms[claimed], config.thresholds)
    n_groups = len(evidence.f_square)

    def count(weights: Float[ndarray, " group"]) -> Int[ndarray, " class"]:
        agrees = counted.agrees(weights) | kept_out
        return fixed + np.bincount(np.where(agrees, code[claimed], place[UNCONFIRMED]), minlength=len(order))

    point = count(np.ones(n_groups))
    sequences, latents = (np.zeros((draws, len(order)), dtype=np.int64) for _ in range(2))
    for draw in range(draws):
        sequences[draw] = count(rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups)).astype(np.float64))
        latents[draw] = rng.multinomial(len(code), sequences[draw] / len(code))
    return ClassIntervals(
        _intervals(order, point, sequences, evidence.n_sequences),
        _intervals(order, point, latents, evidence.n_sequences),
        n_groups,
        draws,
    )


@dataclass(frozen=True)
class _Counted:
    """Where nu confirms the claims, when the groups count as often as their weights say."""

    evidence: ClassEvidence
    gram: Float[Tensor, "model model claim"]
    norms: Float[ndarray, "claim model"]
    thresholds: ClassThresholds

    def agrees(self, weights: Float[ndarray, " group"]) -> Bool[ndarray, " claim"]:
        weight = torch.from_numpy(weights).to(self.evidence.f_square)
        parts = (self.evidence.f_square, self.evidence.dot_error, self.evidence.dot_reconstruction)
        summed = (torch.tensordot(weight, values, dims=1) for values in parts)
        return confirmed(self.norms, scaling_of(self.gram, *summed), self.thresholds)


def _intervals(
    order: Sequence[str], point: Int[ndarray, " class"], draws: Int[ndarray, "draw class"], n: int
) -> dict[str, Interval]:
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return {
        name: Interval(float(point[place]), float(low[place]), float(high[place]), n)
        for place, name in enumerate(order)
    }
