"""Which features other seeds find again: dictionaries that differ only in their seed, matched by their decoders."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray

from mechprobe.features.result import ClassStability, Stability
from mechprobe.features.table.classes import DEAD
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.features.validation.matching import Matching
from mechprobe.statistics import bootstrap_mean, wilson_interval

ALL = "all"
"""Name of the live features together, beside the classes."""


def found_again(reference: FeatureTable, tables: Sequence[FeatureTable], matchings: Sequence[Matching]) -> pd.DataFrame:
    """How the features of a reference are found again, one row per feature.

    Columns: ``feature``; ``class`` in the reference; ``found_by``, the number of seeds that find it; ``mean_cosine`` with its
    partners; ``same_class``, the number of seeds that find it with the same class.
    """
    found = np.stack([matching.found for matching in matchings])
    same = np.stack([_same_class(reference, *pair) for pair in zip(tables, matchings, strict=True)])
    cosine = np.stack([matching.cosine for matching in matchings])
    has = ~np.isnan(cosine)
    mean = np.where(has, cosine, 0.0).sum(axis=0) / np.where(has.any(axis=0), has.sum(axis=0), np.nan)
    return pd.DataFrame(
        {
            "feature": np.arange(len(reference)),
            "class": reference.classes,
            "found_by": found.sum(axis=0),
            "mean_cosine": mean,
            "same_class": same.sum(axis=0),
        }
    )


def _same_class(reference: FeatureTable, table: FeatureTable, matching: Matching) -> Bool[ndarray, " d_sae"]:
    """Features that are found again with the same class."""
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
    """Shares found again, mean cosines and class counts.

    Args:
        reference: Table of the run's crosscoder.
        tables: Tables of the further dictionaries.
        matchings: Matchings of the reference to each of them.
        seeds: Seeds of the further dictionaries.
        bootstrap_seed: Seed of the bootstrap over features.
    """
    frame = found_again(reference, tables, matchings)
    classes_of = np.array(reference.classes, dtype=object)
    live = classes_of != DEAD
    sizes = [table.summary().class_counts for table in (reference, *tables)]
    alive = [len(table) - size[DEAD] for table, size in zip((reference, *tables), sizes, strict=True)]
    classes = {ALL: _class_stability(frame, live, len(matchings), alive, bootstrap_seed)}
    for name in dict.fromkeys(name for size in sizes for name in size if name != DEAD):
        counts = [size.get(name, 0) for size in sizes]
        classes[name] = _class_stability(frame, classes_of == name, len(matchings), counts, bootstrap_seed)
    whole, n, min_cosine = classes[ALL], len(matchings), matchings[0].min_cosine
    share = whole.found_share
    sentence = (
        f"Other seeds: of {whole.n:,} live features {share.value:.0%} [{share.low:.0%}, {share.high:.0%}] are found again at "
        f"cosine ≥ {min_cosine:g} (mean over {n} further {'seed' if n == 1 else 'seeds'}; mean cosine "
        f"{whole.mean_cosine.value:.2f})."
    )
    return Stability(sentence=sentence, classes=classes, seeds=list(seeds), min_cosine=min_cosine)


def _class_stability(
    frame: pd.DataFrame, members: Bool[ndarray, " d_sae"], n: int, counts: list[int], seed: int
) -> ClassStability:
    """The record of some rows of `found_again` over ``n`` seeds."""
    found_by, cosine, same_class = (
        np.asarray(frame[name])[members] for name in ("found_by", "mean_cosine", "same_class")
    )
    return ClassStability(
        n=len(found_by),
        found_share=bootstrap_mean(found_by / n, seed=seed),
        found_by_all=wilson_interval(int((found_by == n).sum()), len(found_by)),
        same_class_share=bootstrap_mean(same_class / n, seed=seed),
        mean_cosine=bootstrap_mean(cosine[~np.isnan(cosine)], seed=seed),
        counts=counts,
    )
