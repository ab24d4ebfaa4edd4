"""Typed records of the rivals and of the curves over sizes in ``results.json``; effects are as in `result_rows`."""

from typing import NamedTuple

from mechprobe.interventions.result_rows import Change
from mechprobe.results import Result


class RivalEffect(Result):
    """A rival beside the transplant of the selected set, on the pooled row.

    Attributes:
        name, condition: The rival, and its condition.
        rank: Independent directions of its change; None where ranks do not apply.
        dose: Multiple of the mean difference that the selection halves chose; None for rivals without a dose.
        effect: Of the rival, in the claimed direction.
        difference: Effect of the selected set minus that of the rival, on the same samples.
        beaten, no_worse, damages: See `mechprobe.interventions.verdicts.rivals`.
    """

    name: str
    condition: str
    rank: int | None
    dose: float | None
    effect: Change
    difference: Change
    beaten: bool
    no_worse: bool
    damages: bool


class Comparison(Result):
    """The transplant of the selected set against its rivals in one host.

    Attributes:
        rank: Largest number of independent directions of the set's change: its number of features.
        effect: Of the set, in the claimed direction.
        rivals: Every rival and complement.
        best: The rival of the largest effect among those of equal or lower rank; None without any.
        better_than: The set beats every rival of this rank or less; 0 where it does not beat rank 1, None where nothing can be
            compared.
        no_better_than: Smallest rank of a rival that is no worse; None where there is none.
        verdict, sentence: In words; empty where nothing can be compared.
    """

    model: str
    edit: str
    features: str
    rank: int
    effect: Change
    rivals: list[RivalEffect]
    best: str | None
    better_than: int | None
    no_better_than: int | None
    verdict: str
    sentence: str


class OtherRanking(Result):
    """The transplant of the selected set beside that of a set by another ranking, on the pooled row.

    Attributes:
        features, n_features: The other set and its size; ``n_selected`` is the size of the selected set.
        effect, difference: Of the other set, and of the selected set minus the other, on the same samples.
        sentence: Where the other set does more, in words; else empty.
    """

    model: str
    edit: str
    features: str
    n_features: int
    n_selected: int
    effect: Change
    difference: Change
    sentence: str


class CurvePoint(NamedTuple):
    """Share of the pooled ceiling that a set of this size carries."""

    size: int
    share: float


class Curve(Result):
    """Shares of the ceiling by size in one host; ``area`` is the mean share over log₂ of the size, None where it has no end."""

    model: str
    kind: str
    points: list[CurvePoint]
    area: float | None
