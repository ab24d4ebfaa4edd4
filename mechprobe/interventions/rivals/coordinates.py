"""Residual coordinates: the donor's values of the few coordinates of the residual in which the two models differ most.

This is the change in the standard basis, the "neurons" of a residual stream as MIB (arXiv 2504.13151) interchanges them. The
coordinates are ranked by the mean squared difference over tokens, so the first k carry most of it among all sets of k
coordinates, as the first k principal components do among all subspaces of rank k. The ranking is ours. They are not neurons
of an MLP, whose number and place differ from one architecture to another.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from mechprobe.interventions.edits.edit_functions import Rewrite
from mechprobe.interventions.rivals.rival import Rival, RivalInput, ranks_of


def coordinate_rivals(n_features: int, d_model: int) -> list[Rival]:
    """1, 2, 5 and 10 coordinates, and as many as the set has features."""
    return [Rival(name_of(rank), rank, partial(_build, rank)) for rank in ranks_of(n_features, d_model)]


def name_of(rank: int) -> str:
    """Name of the rival of one rank."""
    return f"residual coordinates, rank {rank}"


def _build(rank: int, given: RivalInput) -> Rewrite:
    chosen = given.fit.coordinates[:rank]

    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        resid, places = x[given.host].clone(), chosen.to(x[given.host].device)
        resid[..., places] = x[given.donor].to(resid)[..., places]
        return resid

    return rewrite
