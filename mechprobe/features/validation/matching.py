"""One-to-one matching of the features of two dictionaries, and which features other seeds find again.

The order of features is arbitrary, so features of dictionaries trained apart are paired such that the sum of the cosines of
their decoders is largest (Hungarian method; Kuhn 1955, scipy's ``linear_sum_assignment``). A feature counts as *found again*
when the cosine of its pair reaches a threshold (Paulo and Belrose 2025, arXiv 2501.16615). The share that seeds of the same
models find again is the ceiling of every other comparison.

That method holds the cosines of all pairs, 8.6 GB for two dictionaries of 32,768 features. Above `DENSE_PAIRS` pairs only those
that reach the threshold are candidates, at most `CANDIDATES` of each feature, and the matching of the largest sum is found among
them (scipy's ``min_weight_full_bipartite_matching``). Pairs below the threshold, which find nothing again, are then not made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.environment import require
from mechprobe.errors import ConfigError
from mechprobe.features.result import ClassStability, Stability
from mechprobe.features.table.classes import DEAD
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.features.validation.retrain import TabledDictionary
from mechprobe.statistics import bootstrap_mean, wilson_interval

if TYPE_CHECKING:
    import pandas as pd


DENSE_PAIRS = 1 << 26
"""Pairs up to which the cosines of all are held at once (0.5 GB)."""
CANDIDATES = 64
"""Candidates of each feature beyond that: those of the largest cosines."""
_BLOCK = 1024
_ROUNDING = 1e-5
"""Candidates are found in float32; `Matching.found` compares cosines in float64."""
Pairs = tuple[ndarray, ndarray, ndarray]
"""Rows and columns that are paired, and the cosines of the pairs."""


@dataclass(frozen=True)
class Matching:
    """One-to-one pairs between the features of two dictionaries.

    Attributes:
        partner: For each feature of the first, its partner in the second; -1 for none.
        cosine: Cosine of the pair; NaN without a partner.
        min_cosine: Smallest cosine at which a feature counts as found again.
        alive: Features of the first that could be paired.
        all_pairs: Whether pairs below ``min_cosine`` were made, too.
    """

    partner: Int[ndarray, " first"]
    cosine: Float[ndarray, " first"]
    min_cosine: float
    alive: Bool[ndarray, " first"]
    all_pairs: bool = True

    @property
    def found(self) -> Bool[ndarray, " first"]:
        """Which features of the first are found again in the second."""
        return (self.partner >= 0) & (np.nan_to_num(self.cosine, nan=-1.0) >= self.min_cosine)

    def found_share(self, features: Sequence[int] | None = None) -> float:
        """Share of ``features`` that are found again (None: of all that could be paired); NaN for no features."""
        chosen = np.flatnonzero(self.alive) if features is None else np.asarray(features, dtype=int)
        return float(self.found[chosen].mean()) if len(chosen) else float("nan")

    def translate(self, features: Sequence[int]) -> list[int | None]:
        """The partners of ``features``; None for a feature that is not found again."""
        found = self.found
        return [int(self.partner[index]) if found[index] else None for index in features]


def match_features(
    first: Float[ndarray, "first width"],
    second: Float[ndarray, "second other_width"],
    *,
    min_cosine: float = 0.7,
    alive: tuple[Bool[ndarray, " first"], Bool[ndarray, " second"]] | None = None,
) -> Matching:
    """Pair the features of two dictionaries by the cosine of their decoders.

    Args:
        first: Decoders of the first dictionary; for several models side by side, in the same units as ``second``.
        second: Decoders of the second dictionary.
        min_cosine: Smallest cosine at which a feature counts as found again.
        alive: Features of the first and of the second that may be paired. Features with a zero decoder are never paired.

    Raises:
        ConfigError: The decoders have different widths.

    Example:
        >>> match_features(np.eye(3), np.eye(3)[[2, 0, 1]]).partner
        array([1, 2, 0])
    """
    if first.shape[1] != second.shape[1]:
        raise ConfigError(
            f"The decoders have widths {first.shape[1]} and {second.shape[1]}; only dictionaries of the same models match."
        )
    live = [
        (np.linalg.norm(decoder, axis=1) > 0) & (True if alive is None else alive[side])
        for side, decoder in enumerate((first, second))
    ]
    rows, columns = map(np.flatnonzero, live)
    all_pairs = len(rows) * len(columns) <= DENSE_PAIRS
    pair = _pair_all if all_pairs else partial(_pair_candidates, min_cosine=min_cosine)
    chosen_rows, chosen_columns, found = pair(first[rows], second[columns])
    partner, cosine = np.full(len(first), -1), np.full(len(first), np.nan)
    partner[rows[chosen_rows]] = columns[chosen_columns]
    cosine[rows[chosen_rows]] = np.clip(found, -1.0, 1.0)
    return Matching(partner, cosine, min_cosine, live[0], all_pairs)


def _pair_all(first: Float[ndarray, "row width"], second: Float[ndarray, "column width"]) -> Pairs:
    """The pairs of the largest sum of cosines; every row or every column has one."""
    from scipy.optimize import linear_sum_assignment

    similarity = unit(first) @ unit(second).T
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return rows, columns, similarity[rows, columns]


def _pair_candidates(
    first: Float[ndarray, "row width"], second: Float[ndarray, "column width"], *, min_cosine: float
) -> Pairs:
    """The pairs of the largest sum of cosines among those that reach ``min_cosine``; a row may have none.

    The cosines of `_BLOCK` rows are held at a time. Every row has a column of its own beside the real ones, which stands for
    having no partner, so that a full matching exists; 1 is added to all weights, because scipy takes 0 for a missing pair.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n, width = len(first), len(second)
    other = unit(second).astype(np.float32)
    found: list[tuple[ndarray, ndarray, ndarray]] = [(np.arange(n), width + np.arange(n), np.ones(n))]
    for start in range(0, n, _BLOCK):
        cosine = unit(first[start : start + _BLOCK]).astype(np.float32) @ other.T
        if width > CANDIDATES:
            least = np.partition(cosine, width - CANDIDATES, axis=1)[:, width - CANDIDATES, None]
            cosine[cosine < least] = -1.0
        row, column = np.nonzero(cosine >= min_cosine - _ROUNDING)
        found.append((row + start, column, 1.0 + cosine[row, column].astype(np.float64)))
    row, column, weight = map(np.concatenate, zip(*found, strict=True))
    graph = coo_array((weight, (row, column)), shape=(n, width + n)).tocsr()
    rows, columns = min_weight_full_bipartite_matching(graph, maximize=True)
    rows, columns = rows[columns < width], columns[columns < width]
    return rows, columns, (unit(first[rows]) * unit(second[columns])).sum(axis=1)


def match_dictionaries(first: TabledDictionary, second: TabledDictionary, min_cosine: float) -> Matching:
    """Match the live features of two dictionaries of the same models; decoders in scaled units, models side by side."""
    decoders = [crosscoder.decoder.detach().float().cpu().numpy() for crosscoder, _ in (first, second)]
    alive = (~first[1].dead, ~second[1].dead)
    return match_features(decoders[0], decoders[1], min_cosine=min_cosine, alive=alive)


def matched_overlap(first: Sequence[int], second: Sequence[int], matching: Matching, size: int) -> float:
    """|A ∩ B| / size, where a feature of A counts as in B when it is found again and its partner is in B."""
    members = set(second)
    return sum(partner in members for partner in matching.translate(first) if partner is not None) / size


def unit(vectors: Float[ndarray, "row width"]) -> Float[ndarray, "row width"]:
    """Rows of norm 1 in float64; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


ALL = "all"
"""Name of the live features together, beside the classes."""


def found_again(
    reference: FeatureTable, tables: Sequence[FeatureTable], matchings: Sequence[Matching]
) -> "pd.DataFrame":
    """How the features of a reference are found again, one row per feature.

    Columns: ``feature``; ``class`` in the reference; ``found_by``, the number of seeds that find it; ``mean_cosine`` with its
    partners; ``same_class``, the number of seeds that find it with the same class.
    """
    found = np.stack([matching.found for matching in matchings])
    same = np.stack([_same_class(reference, *pair) for pair in zip(tables, matchings, strict=True)])
    cosine = np.stack([matching.cosine for matching in matchings])
    has = ~np.isnan(cosine)
    mean = np.where(has, cosine, 0.0).sum(axis=0) / np.where(has.any(axis=0), has.sum(axis=0), np.nan)
    columns = {"feature": np.arange(len(reference)), "class": reference.classes, "found_by": found.sum(axis=0)}
    return require("pandas", "The feature table").DataFrame(
        {**columns, "mean_cosine": mean, "same_class": same.sum(axis=0)}
    )


def _same_class(reference: FeatureTable, table: FeatureTable, matching: Matching) -> Bool[ndarray, " d_sae"]:
    classes = np.array(table.classes, dtype=object)[np.maximum(matching.partner, 0)]
    return matching.found & (classes == np.array(reference.classes, dtype=object))


def summarize(
    reference: FeatureTable,
    tables: Sequence[FeatureTable],
    matchings: Sequence[Matching],
    *,
    seeds: Sequence[int],
    bootstrap_seed: int,
) -> Stability:
    """Shares found again, mean cosines and class counts, from the tables, matchings and seeds of the further dictionaries."""
    frame, n, min_cosine = found_again(reference, tables, matchings), len(matchings), matchings[0].min_cosine
    classes_of = np.array(reference.classes, dtype=object)
    sizes = [table.summary().class_counts for table in (reference, *tables)]
    alive = [sum(size.values()) - size[DEAD] for size in sizes]
    classes = {ALL: _class_stability(frame, classes_of != DEAD, n, alive, bootstrap_seed)}
    for name in dict.fromkeys(name for size in sizes for name in size if name != DEAD):
        counts = [size.get(name, 0) for size in sizes]
        classes[name] = _class_stability(frame, classes_of == name, n, counts, bootstrap_seed)
    whole, of = classes[ALL], "" if matchings[0].all_pairs else " of those found"
    share = whole.found_share
    sentence = (
        f"Other seeds: of {whole.n:,} live features {share.value:.0%} [{share.low:.0%}, {share.high:.0%}] are found again at "
        f"cosine ≥ {min_cosine:g} (mean over {n} further {'seed' if n == 1 else 'seeds'}; mean cosine{of} "
        f"{whole.mean_cosine.value:.2f})."
    )
    return Stability(sentence=sentence, classes=classes, seeds=list(seeds), min_cosine=min_cosine)


def _class_stability(
    frame: "pd.DataFrame", members: Bool[ndarray, " d_sae"], n: int, counts: list[int], seed: int
) -> ClassStability:
    """The record of some rows of `found_again` over ``n`` seeds."""
    names = ("found_by", "mean_cosine", "same_class")
    found_by, cosine, same_class = (np.asarray(frame[name])[members] for name in names)
    return ClassStability(
        n=len(found_by),
        found_share=bootstrap_mean(found_by / n, seed=seed),
        found_by_all=wilson_interval(int((found_by == n).sum()), len(found_by)),
        same_class_share=bootstrap_mean(same_class / n, seed=seed),
        mean_cosine=bootstrap_mean(cosine[~np.isnan(cosine)], seed=seed),
        counts=counts,
    )
