"""One-to-one matching of the features of two dictionaries by the cosine of their decoders.

The order of features is arbitrary, so features of dictionaries trained apart are paired such that the sum of cosines is largest
(Hungarian method; Kuhn 1955, scipy's ``linear_sum_assignment``). A feature counts as *found again* when the cosine of its pair
reaches a threshold. The share found again between seeds of the same models is the ceiling of every other comparison.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.errors import ConfigError
from mechprobe.features.validation.retrain import TabledDictionary


@dataclass(frozen=True)
class Matching:
    """One-to-one pairs between the features of two dictionaries.

    Attributes:
        partner: For each feature of the first, its partner in the second; -1 for none.
        cosine: Cosine of the pair; NaN without a partner.
        min_cosine: Smallest cosine at which a feature counts as found again.
    """

    partner: Int[ndarray, " first"]
    cosine: Float[ndarray, " first"]
    min_cosine: float

    @property
    def found(self) -> Bool[ndarray, " first"]:
        """Which features of the first are found again in the second."""
        return (self.partner >= 0) & (np.nan_to_num(self.cosine, nan=-1.0) >= self.min_cosine)

    def found_share(self, features: Sequence[int] | None = None) -> float:
        """Share of ``features`` that are found again (None: of all that have a partner); NaN for no features."""
        chosen = np.flatnonzero(self.partner >= 0) if features is None else np.asarray(features, dtype=int)
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
    from scipy.optimize import linear_sum_assignment

    if first.shape[1] != second.shape[1]:
        raise ConfigError(
            f"The decoders have widths {first.shape[1]} and {second.shape[1]}; only dictionaries of the same models match."
        )
    rows, columns = (
        np.flatnonzero((np.linalg.norm(decoder, axis=1) > 0) & (True if alive is None else alive[side]))
        for side, decoder in enumerate((first, second))
    )
    partner, cosine = np.full(len(first), -1), np.full(len(first), np.nan)
    similarity = unit(first[rows]) @ unit(second[columns]).T
    chosen_rows, chosen_columns = linear_sum_assignment(similarity, maximize=True)
    partner[rows[chosen_rows]] = columns[chosen_columns]
    cosine[rows[chosen_rows]] = np.clip(similarity[chosen_rows, chosen_columns], -1.0, 1.0)
    return Matching(partner, cosine, min_cosine)


def match_dictionaries(first: TabledDictionary, second: TabledDictionary, min_cosine: float) -> Matching:
    """Match the live features of two dictionaries of the same models; decoders in scaled units, models side by side."""
    decoders = [crosscoder.decoder.detach().double().cpu().numpy() for crosscoder, _ in (first, second)]
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
