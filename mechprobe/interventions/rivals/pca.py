"""The difference between the models on every token, projected on its first uncentred principal components."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from mechprobe.interventions.edits.edit_functions import Rewrite
from mechprobe.interventions.rivals.rival import Rival, RivalInput, placed, ranks_of


def pca_rivals(n_features: int, d_model: int) -> list[Rival]:
    """Ranks 1, 2, 5 and 10, and as many as the set has features."""
    return [Rival(name_of(rank), rank, partial(_build, rank)) for rank in ranks_of(n_features, d_model)]


def name_of(rank: int) -> str:
    """Name of the rival of one rank."""
    return f"PCA of the difference, rank {rank}"


def _build(rank: int, given: RivalInput) -> Rewrite:
    components = given.fit.components[:rank]

    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        resid = x[given.host]
        basis = placed(components, resid)
        return resid + ((x[given.donor].to(resid) - resid) @ basis.T) @ basis

    return rewrite
