"""Faithfulness curves: the share of the ceiling by the size of a set, for the ranking and what rivals it.

The area under a curve is its mean over log₂ of the size, from 1 to the size of the set, with straight lines between measured
sizes. MIB (arXiv 2504.13151) integrates over the share of a circuit's edges; sizes of features have no such end, so the
logarithm is ours.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.result_rows import ConditionResult
from mechprobe.interventions.rival_rows import Curve, CurvePoint
from mechprobe.interventions.rivals import coordinates, pca
from mechprobe.types import POOLED

FEATURES, COMPONENTS, COORDINATES, RANDOM = (
    "features of the ranking", "principal components", "residual coordinates", "random features",
)  # fmt: skip
_NAMES = {COMPONENTS: pca.name_of, COORDINATES: coordinates.name_of}
"""Kind of set → name of its rival of a rank."""


def faithfulness_curves(conditions: Sequence[Condition], rows: Sequence[ConditionResult]) -> list[Curve]:
    """One curve per host and kind of set; none where the ceiling of the host is not measurable."""
    shares = {row.name: row.share_of_ceiling.get(POOLED) for row in rows}
    found = []
    for main in (c for c in conditions if c.set_kind == "selected" and c.edit == "transplant" and c.ids):
        if shares[main.name] is None:
            continue
        for kind, points in _points(main, conditions).items():
            by_size = {
                size: [value for name in names if (value := shares[name]) is not None] for size, names in points.items()
            }
            curve = [CurvePoint(size, float(np.mean(values))) for size, values in sorted(by_size.items()) if values]
            if len(curve) > 1:
                found.append(Curve(model=main.model, kind=kind, points=curve, area=area_under(curve, len(main.ids))))
    return found


def _points(main: Condition, conditions: Sequence[Condition]) -> Mapping[str, dict[int, list[str]]]:
    """Kind of set → size → names of the conditions of that size, in the host of ``main``."""
    n = len(main.ids)
    result: dict[str, dict[int, list[str]]] = {FEATURES: {n: [main.name]}, COMPONENTS: {}, COORDINATES: {}, RANDOM: {}}
    for c in (c for c in conditions if c.model == main.model):
        if c.set_kind == "size":
            result[FEATURES].setdefault(len(c.ids), []).append(c.name)
        elif c.set_kind == "rival" and c.rank is not None and c.rank <= n:
            for kind in (kind for kind, name_of in _NAMES.items() if c.features == name_of(c.rank)):
                result[kind].setdefault(c.rank, []).append(c.name)
        elif c.edit == "transplant" and c.set_kind in ("random", "random_size"):
            result[RANDOM].setdefault(len(c.ids), []).append(c.name)
    return result


def area_under(curve: Sequence[CurvePoint], largest: int) -> float | None:
    """Mean share over log₂ of the size between 1 and ``largest``; None where the curve does not span them."""
    sizes = np.log2([point.size for point in curve])
    if largest < 2 or sizes[0] > 0 or sizes[-1] < np.log2(largest):
        return None
    return float(np.trapezoid([point.share for point in curve], sizes) / np.log2(largest))
