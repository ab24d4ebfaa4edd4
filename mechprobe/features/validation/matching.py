"""Which feature of one dictionary is which of another: decoders matched one to one, never by index.

The order of features is an accident of training, so features of dictionaries trained apart are paired by the cosine
of their decoders, such that the sum of cosines is largest (Hungarian method; Kuhn 1955, scipy's
``linear_sum_assignment``). A pair counts as *found again* from a stated cosine on; what that leaves of two dictionaries
of the same models with other seeds is the ceiling against which every other comparison is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.errors import ConfigError


@dataclass(frozen=True)
class Matching:
    """One to one pairs between the features of two dictionaries.

    Attributes:
        partner: For every feature of the first its feature in the second; -1 where it has none.
        cosine: Their cosine; NaN where there is no partner.
        min_cosine: From which a feature counts as found again.
    """

    partner: Int[ndarray, " first"]
    cosine: Float[ndarray, " first"]
    min_cosine: float

    @property
    def found(self) -> Bool[ndarray, " first"]:
        """Which features of the first are found again in the second."""
        return (self.partner >= 0) & (np.nan_to_num(self.cosine, nan=-1.0) >= self.min_cosine)

    def found_share(self, features: Sequence[int] | None = None) -> float:
        """Share of ``features`` (of those with a decoder, when None) that are found again; NaN for none."""
        chosen = np.flatnonzero(self.partner >= 0) if features is None else np.asarray(features, dtype=int)
        return float(self.found[chosen].mean()) if len(chosen) else float("nan")

    def translate(self, features: Sequence[int]) -> list[int | None]:
        """The partners of ``features``; None where one is not found again."""
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
        first: Decoders of the first dictionary; those of several models side by side, scaled alike in both.
        second: Decoders of the second, in the same space.
        min_cosine: From which a pair counts as found again.
        alive: Features that may be paired, of the first and of the second; zero decoders never are.

    Raises:
        ConfigError: The decoders have different widths: their models are not the same.

    Example:
        >>> match_features(np.eye(3), np.eye(3)[[2, 0, 1]]).partner
        array([1, 2, 0])
    """
    from scipy.optimize import linear_sum_assignment

    if first.shape[1] != second.shape[1]:
        raise ConfigError(
            f"The decoders have widths {first.shape[1]} and {second.shape[1]}; match dictionaries of the same widths."
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


def matched_overlap(first: Sequence[int], second: Sequence[int], matching: Matching, size: int) -> float:
    """|A ∩ B| / size where a feature of A is in B when it is found again and its partner is in B."""
    members = set(second)
    return sum(partner in members for partner in matching.translate(first) if partner is not None) / size


def unit(vectors: Float[ndarray, "row width"]) -> Float[ndarray, "row width"]:
    """Rows of norm 1 in float64; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)
