"""Linear probes: how well skill and domain can be read from the residual stream, by layer and model.

A logistic regression on standardized residuals is fitted on some items and tested on others. Where a class has several families,
whole families are held out, so that the probe cannot use the words of one family; where it has one, items are held out. The
probe is fitted once more with shuffled labels; the accuracy minus that of this control is the selectivity (Hewitt & Liang 2019,
whose control labels word types; ours shuffles items, because a held-out family has no type in common with the others).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.drift.probe.config import LinearConfig
from mechprobe.environment import require
from mechprobe.statistics import Interval, clustered_interval


@dataclass(frozen=True)
class Folds:
    """How the items of a probe are split.

    Attributes:
        fold: Part of every item.
        unit: What every item is held out with: its family, or itself.
        held_out: ``families``, ``items``, or ``families where a class has several``.
    """

    fold: Int[ndarray, " item"]
    unit: tuple[str, ...]
    held_out: str


def make_folds(classes: Sequence[str], families: Sequence[str], n_folds: int, rng: np.random.Generator) -> Folds:
    """Put families, or items where a class has one family only, into folds in turn, class by class."""
    fold, unit, kinds = np.zeros(len(classes), dtype=np.int64), list[str](), set[bool]()
    of_class: dict[str, list[str]] = {}
    for name, family in zip(classes, families, strict=True):
        of_class.setdefault(name, [])
        of_class[name] += [family] * (family not in of_class[name])
    for place, (name, family) in enumerate(zip(classes, families, strict=True)):
        several = len(of_class[name]) > 1
        kinds.add(several)
        unit.append(family if several else f"{family}/{place}")
    for name in of_class:
        units = list(dict.fromkeys(each for each, owner in zip(unit, classes, strict=True) if owner == name))
        turn = dict(zip((units[k] for k in rng.permutation(len(units))), np.arange(len(units)) % n_folds, strict=True))
        for place, owner in enumerate(classes):
            if owner == name:
                fold[place] = turn[unit[place]]
    held_out = "families where a class has several" if len(kinds) > 1 else "families" if True in kinds else "items"
    return Folds(fold, tuple(unit), held_out)


def balanced_accuracy(predicted: Sequence[str] | ndarray, classes: Sequence[str], units: Sequence[str]) -> Interval:
    """Mean recall of the classes with its interval over held-out units (families or items); ``n`` counts the units.

    The interval of each recall is `mechprobe.statistics.clustered_interval` over the units of the class. They are joined by
    the method of variance estimates recovery (Zou & Donner 2008), because the classes share no unit.
    """
    recalls = []
    for name in sorted(set(classes)):
        items = [place for place, owner in enumerate(classes) if owner == name]
        number = {unit: place for place, unit in enumerate(dict.fromkeys(units[item] for item in items))}
        places = [number[units[item]] for item in items]
        hits = np.bincount(places, weights=[predicted[item] == name for item in items], minlength=len(number))
        recalls.append(clustered_interval(hits, np.bincount(places, minlength=len(number))))
    value = float(np.mean([recall.value for recall in recalls]))
    down = float(np.sqrt(sum((recall.value - recall.low) ** 2 for recall in recalls))) / len(recalls)
    up = float(np.sqrt(sum((recall.high - recall.value) ** 2 for recall in recalls))) / len(recalls)
    return Interval(value, max(0.0, value - down), min(1.0, value + up), sum(recall.n for recall in recalls))


@dataclass(frozen=True)
class Probed:
    """The accuracy of one probe on held-out items, and that of its control."""

    accuracy: Interval
    control: Interval
    held_out: str

    @property
    def selectivity(self) -> float:
        """Accuracy minus the accuracy with shuffled labels."""
        return self.accuracy.value - self.control.value


def probe_labels(
    x: Float[ndarray, "item d_model"], classes: Sequence[str], families: Sequence[str], config: LinearConfig, seed: int
) -> Probed:
    """Fit and test a probe of some classes, and its control with shuffled labels.

    Args:
        x: Residuals.
        classes: Class of each item; at least two classes.
        families: Family of each item.
        config: Settings.
        seed: Seed of folds and control.

    Raises:
        DependencyError: scikit-learn is not installed.
    """
    rng = np.random.default_rng(seed)
    folds = make_folds(classes, families, config.folds, rng)
    shuffled = np.array(classes)[rng.permutation(len(classes))].tolist()
    alone = [str(place) for place in range(len(classes))]
    return Probed(
        balanced_accuracy(predictions(x, classes, folds.fold, config.c), classes, folds.unit),
        balanced_accuracy(predictions(x, shuffled, folds.fold, config.c), shuffled, alone),
        folds.held_out,
    )


def predictions(
    x: Float[ndarray, "item d_model"], classes: Sequence[str], fold: Int[ndarray, " item"], c: float
) -> ndarray:
    """The class that a probe of the other folds gives to each item; empty for an item whose fold leaves a single class."""
    require("sklearn", "The linear probes of `mechprobe probe`")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, given = np.array(classes), np.full(len(classes), "", dtype=object)
    for train, test in _splits(fold):
        if len(set(names[train])) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=500))
        given[test] = model.fit(x[train], names[train]).predict(x[test])
    return given


def _splits(fold: Int[ndarray, " item"]) -> Iterator[tuple[ndarray, ndarray]]:
    for part in np.unique(fold):
        yield np.flatnonzero(fold != part), np.flatnonzero(fold == part)
