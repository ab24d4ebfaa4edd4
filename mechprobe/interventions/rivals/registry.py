"""All rivals by kind."""

from collections.abc import Callable, Mapping, Sequence

from mechprobe.interventions.rivals.complement import complement_rivals
from mechprobe.interventions.rivals.coordinates import coordinate_rivals
from mechprobe.interventions.rivals.kinds import RivalKind
from mechprobe.interventions.rivals.mean_difference import mean_rivals
from mechprobe.interventions.rivals.pca import pca_rivals
from mechprobe.interventions.rivals.rival import Rival
from mechprobe.interventions.rivals.switched import switched_rivals
from mechprobe.interventions.rivals.weight_change import weight_rivals
from mechprobe.interventions.rivals.whole_difference import whole_rivals

MAKERS: Mapping[RivalKind, Callable[[int, int], list[Rival]]] = {
    "mean": mean_rivals,
    "pca": pca_rivals,
    "coordinates": coordinate_rivals,
    "whole": whole_rivals,
    "switched": switched_rivals,
    "weights": weight_rivals,
    "complement": complement_rivals,
}
"""Kind → its rivals, from the number of features of the set and the width of the residual."""


def rivals_of(kinds: Sequence[RivalKind], *, n_features: int, d_model: int) -> list[Rival]:
    """The rivals of the given kinds, in the order of the kinds."""
    return [rival for kind in dict.fromkeys(kinds) for rival in MAKERS[kind](n_features, d_model)]
