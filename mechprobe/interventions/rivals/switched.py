"""Steering that is switched on token by token: the difference on a token chooses one of a few vectors, or none.

The vectors are the centers of k-means clusters of the difference, beside a cluster whose center is fixed at 0. On every token the
vector nearest to the difference is added, nothing where 0 is nearest. Steering at chosen tokens is that of arXiv 2510.07364; the
clusters, and the donor's residual as the switch, are ours. The switch sees the donor, so it is an upper bound of what a learned
switch would do with the same vectors.
"""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.interventions.edits.edit_functions import Rewrite
from mechprobe.interventions.rivals.rival import Rival, RivalInput, placed

N_VECTORS = (1, 5)
_STEPS = 25


def switched_rivals(n_features: int, d_model: int) -> list[Rival]:
    """One vector and five; never more than the set has features."""
    return [
        Rival(f"switched steering, {k} vector{'s' if k > 1 else ''}", k, partial(_build, k))
        for k in N_VECTORS
        if k <= min(max(n_features, 1), d_model)
    ]


def centers_of(rows: Float[Tensor, "row d_model"], k: int, *, seed: int) -> Float[Tensor, "center d_model"]:
    """Centers of ``k`` clusters of the rows, beside a cluster whose center stays at 0 (Lloyd's algorithm).

    The first centers are rows drawn with probability proportional to their squared distance from the nearest center, 0 included
    (k-means++). A center without rows stays where it is.
    """
    generator = torch.Generator().manual_seed(seed)
    centers = torch.zeros(1, rows.shape[1], dtype=rows.dtype)
    for _ in range(k):
        weights = torch.cdist(rows, centers).amin(dim=1).square()
        weights = weights if bool(weights.sum() > 0) else torch.ones_like(weights)
        drawn = torch.multinomial(weights, 1, generator=generator)
        centers = torch.cat([centers, rows[drawn]])
    for _ in range(_STEPS):
        nearest = torch.cdist(rows, centers).argmin(dim=1)
        moved = centers.clone()
        for center in range(1, k + 1):
            own = rows[nearest == center]
            if len(own):
                moved[center] = own.mean(dim=0)
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers[1:]


def _build(k: int, given: RivalInput) -> Rewrite:
    vectors = given.sign * given.fit.centers[k]

    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        resid = x[given.host]
        choices = torch.cat([torch.zeros_like(vectors[:1]), vectors]).to(resid.device)
        difference = (x[given.donor].to(resid) - resid).to(choices.dtype)
        nearest = torch.cdist(difference.flatten(0, -2), choices).argmin(dim=1)
        return resid + placed(choices[nearest].reshape(resid.shape), resid)

    return rewrite
