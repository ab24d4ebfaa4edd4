"""Verdicts of the nulls: what the feature table says where no feature can be specific to a model.

- ``identical``: every model is base. Every specific feature is a false positive, and there must be none.
- ``shuffled-labels``: the models change names from sequence to sequence. The data still differ between models, but no name has
  more of the differences than another, so the classes of equally many models must be equally large but for chance.
- ``disjoint-halves``: two dictionaries of base, each trained on one half of the sequences, are matched by decoder. No feature may
  be specific within either. The features of one that the other lacks are those that a comparison of dictionaries trained apart
  would call specific.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from mechprobe.features.config import NullsConfig
from mechprobe.features.result import (
    ClassIntervals,
    EqualCountsTest,
    HalvesNull,
    IdenticalNull,
    ShuffledNull,
    SpecificCounts,
)
from mechprobe.features.table.classes import class_name, specific_classes
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.features.validation.matching import match_dictionaries
from mechprobe.features.validation.retrain import TabledDictionary
from mechprobe.statistics import holm, randomization_p, wilson_interval

_MULTINOMIAL_DRAWS = 9999


def identical_null(table: FeatureTable) -> IdenticalNull:
    """Verdict of ``identical``."""
    counts = specific_counts(table)
    n, by_norm = counts.n_false["confirmed"], counts.n_false["by_norm"]
    passed = n == 0
    sentence = (
        f"Identical models: {n} of {counts.n_alive:,} live features are called specific ({by_norm} by decoder norms alone); "
        f"there must be none: {_word(passed)}."
    )
    return IdenticalNull(kind="identical", passed=passed, sentence=sentence, **dict(counts))


def shuffled_null(table: FeatureTable, nulls: NullsConfig) -> ShuffledNull:
    """Verdict of ``shuffled-labels``: one test for each number of owners, with p-values adjusted by Holm's method."""
    counts = specific_counts(table)
    layers = _exchangeable(table.models, counts.class_counts)
    p_values = [equal_counts_p(list(layer.values()), seed=nulls.seed) for layer in layers]
    adjusted = holm(p_values) if p_values else []
    within = all(_within(layer, counts.class_intervals) for layer in layers)
    passed = all(p >= nulls.p_min for p in adjusted)
    tests = [EqualCountsTest(counts=layer, p_holm=p) for layer, p in zip(layers, adjusted, strict=True)]
    listed = [(", ".join(f"{count} {name}" for name, count in test.counts.items()), test.p_holm) for test in tests]
    parts = [f"{text} (p = {p:.3g})" for text, p in listed]
    sentence = (
        f"Shuffled labels: {'; '.join(parts)}; counts of one kind must be equal but for chance: {_word(passed)}. The smallest of "
        f"each kind {'lies' if within else 'does not always lie'} within the bootstrap interval of the largest."
    )
    return ShuffledNull(
        kind="shuffled-labels", passed=passed, sentence=sentence, tests=tests, within_intervals=within, **dict(counts)
    )


def halves_null(first: TabledDictionary, second: TabledDictionary, nulls: NullsConfig) -> HalvesNull:
    """Verdict of ``disjoint-halves``."""
    matching = match_dictionaries(first, second, nulls.min_cosine)
    halves = [specific_counts(table) for _, table in (first, second)]
    n_false, n_alive = sum(half.n_false["confirmed"] for half in halves), sum(half.n_alive for half in halves)
    n_found = int(matching.found.sum())
    n_alone, passed = n_alive - 2 * n_found, n_false == 0
    sentence = (
        f"Disjoint halves: {n_false} of {n_alive:,} live features of two dictionaries of base are called specific within their "
        f"own dictionary: {_word(passed)}. {n_alone} of them ({n_alone / max(n_alive, 1):.0%}) have no partner of cosine "
        f"≥ {nulls.min_cosine:g} in the other; a comparison of dictionaries trained apart would call them specific to a half."
    )
    cosine = matching.cosine[~np.isnan(matching.cosine)]
    return HalvesNull(
        kind="disjoint-halves",
        passed=passed,
        sentence=sentence,
        halves=halves,
        without_partner=[wilson_interval(half.n_alive - n_found, half.n_alive) for half in halves],
        mean_cosine=float(cosine.mean()) if len(cosine) else float("nan"),
        min_cosine=nulls.min_cosine,
    )


def specific_counts(table: FeatureTable) -> SpecificCounts:
    """Counts of every class, and how many features are falsely called specific."""
    summary = table.summary()
    by_kind = {"confirmed": summary.class_counts, "by_norm": summary.class_by_norm_counts}
    n_false = {kind: sum(counts[name] for name in specific_classes(list(counts))) for kind, counts in by_kind.items()}
    shares = {kind: wilson_interval(n, summary.n_alive) for kind, n in n_false.items()}
    common = {name: value for name, value in summary if name in SpecificCounts.model_fields}
    return SpecificCounts(**common, n_false=n_false, false_positives=shares)


def _exchangeable(models: Sequence[str], counts: Mapping[str, int]) -> list[dict[str, int]]:
    """Counts of the classes of one owner, of two, and so on; classes without features have count 0."""
    layers = []
    for size in range(1, len(models)):
        owners = combinations(models, size)
        names = [class_name(models, [model in chosen for model in models]) for chosen in owners]
        layers.append({name: int(counts.get(name, 0)) for name in names})
    return layers


def equal_counts_p(counts: Sequence[int], *, seed: int) -> float:
    """p-value of counts that are equal but for chance; 1 where all counts are 0.

    The sum of squared counts is compared with that of multinomial draws with equal probabilities (our choice of statistic).

    Example:
        >>> equal_counts_p([3, 4, 3], seed=0) > 0.5
        True
    """
    total = sum(counts)
    if total == 0:
        return 1.0
    draws = np.random.default_rng([seed, 13]).multinomial(total, [1 / len(counts)] * len(counts), _MULTINOMIAL_DRAWS)
    return randomization_p(float(np.square(counts).sum()), np.square(draws).sum(axis=1).astype(float).tolist())


def _within(layer: Mapping[str, int], intervals: ClassIntervals | None) -> bool:
    """Whether the smallest count lies in the interval of the largest, with features resampled.

    The interval of the smallest is not used: a count of 0 is 0 in every draw, so its interval has no width.
    """
    if intervals is None or not any(layer.values()):
        return not any(layer.values())
    largest = max(layer, key=lambda name: layer[name])
    return intervals.latents[largest].low <= min(layer.values())


def _word(passed: bool) -> str:
    return "passed" if passed else "FAILED"
