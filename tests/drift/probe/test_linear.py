"""Linear probes: a planted label is found on held-out families, a shuffled one is not, and memorised families do not help."""

import numpy as np
import pytest

from mechprobe.drift.probe.config import LinearConfig
from mechprobe.drift.probe.linear import balanced_accuracy, make_folds, probe_labels

CLASSES = [name for name in ("calculation", "simulation") for _ in range(120)]
FAMILIES = [f"{name}-{place % 4}" for place, name in enumerate(CLASSES)]


def test_a_planted_label_is_found_and_a_shuffled_one_is_not() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 16))
    x[:120, 3] += 3
    found = probe_labels(x, CLASSES, FAMILIES, LinearConfig(), 0)
    assert found.held_out == "families"
    assert found.accuracy.value > 0.85
    assert found.accuracy.n == 8
    assert 0.35 < found.control.value < 0.65
    assert found.control.low < 0.5 < found.control.high
    assert found.selectivity > 0.3


def test_what_marks_a_family_says_nothing_about_another_one() -> None:
    """Each family has its own direction: items of a known family are told apart, those of a held-out family are not."""
    rng = np.random.default_rng(1)
    names = sorted(set(FAMILIES))
    x = 0.1 * rng.normal(size=(240, 16))
    x[np.arange(240), [names.index(family) for family in FAMILIES]] += 3
    held = probe_labels(x, CLASSES, FAMILIES, LinearConfig(), 0)
    seen = probe_labels(x, CLASSES, CLASSES, LinearConfig(), 0)
    assert seen.held_out == "items"
    assert seen.accuracy.value > 0.95
    assert held.accuracy.value < 0.7
    assert held.accuracy.low < 0.5


def test_no_family_stands_on_both_sides_and_every_item_is_tested_once() -> None:
    folds = make_folds(CLASSES, FAMILIES, 3, np.random.default_rng(0))
    for family in set(FAMILIES):
        assert len({fold for fold, name in zip(folds.fold, FAMILIES, strict=True) if name == family}) == 1
    mixed = make_folds(CLASSES, [f if f[0] == "c" else "one" for f in FAMILIES], 3, np.random.default_rng(0))
    assert mixed.held_out == "families where a class has several"
    assert len(set(mixed.unit)) == 4 + 120
    assert sorted(set(mixed.fold[120:])) == [0, 1, 2]


def test_balanced_accuracy_weighs_classes_alike() -> None:
    classes = ["a"] * 90 + ["b"] * 10
    found = balanced_accuracy(["a"] * 100, classes, [str(place) for place in range(100)])
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high
    assert found.n == 100
    few = balanced_accuracy(["a"] * 90 + ["b"] * 10, classes, ["f"] * 90 + ["g"] * 5 + ["h"] * 5)
    assert few.value == 1.0
    assert few.low < 0.6  # two families, one family: nearly nothing is known


def test_the_interval_of_balanced_accuracy_holds_the_truth() -> None:
    rng, held = np.random.default_rng(2), []
    classes = ["a"] * 60 + ["b"] * 30
    for _ in range(200):
        right = np.concatenate([rng.random(60) < 0.9, rng.random(30) < 0.6])
        predicted = [name if ok else "c" for name, ok in zip(classes, right, strict=True)]
        found = balanced_accuracy(predicted, classes, [str(place) for place in range(90)])
        held.append(found.low <= 0.75 <= found.high)
    assert 0.92 <= np.mean(held) <= 0.99
