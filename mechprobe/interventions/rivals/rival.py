"""What a rival is: a change of the host's residual that needs no dictionary, and what it is built from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.interventions.edits.edit_functions import Rewrite
from mechprobe.interventions.result_rows import SetKind

RANKS = (1, 2, 5, 10)
"""Ranks at which components and coordinates run, beside the size of the set."""


@dataclass(frozen=True)
class RivalFit:
    """What was measured on the selection halves. Differences are r_tuned − r_base on the same tokens.

    Attributes:
        means: Place (``every token``, ``last prompt token``, ``response tokens``) → mean difference ``[d_model]``.
        components: Uncentred principal components of the difference of a token, ``[component d_model]``, largest first.
        coordinates: The coordinates of the residual, largest mean squared difference first.
        centers: Number of vectors → the vectors of switched steering, ``[vector d_model]``.
        doses: ``host|rival`` → multiple of the mean difference that did most.
    """

    means: Mapping[str, Float[Tensor, " d_model"]]
    components: Float[Tensor, "component d_model"]
    coordinates: Int[Tensor, " d_model"]
    centers: Mapping[int, Float[Tensor, "vector d_model"]]
    doses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RivalInput:
    """What a rival of one host is built from.

    Attributes:
        host, donor: The edited model, and the other one.
        sign: +1 in the base model, where the tuned model is the donor; −1 in the tuned model.
        fit: What the selection halves gave.
        dose: Multiple of a mean difference.
        selected: The transplant of the selected set.
        others: Makes the transplant of every other feature.
    """

    host: str
    donor: str
    sign: float
    fit: RivalFit
    dose: float
    selected: Rewrite
    others: Callable[[], Rewrite]


@dataclass(frozen=True)
class Rival:
    """One rival.

    Attributes:
        name: Unique and readable.
        rank: Number of independent directions of its change over all tokens; None where the change is not of the residual at
            the site, or has no bound.
        build: Makes the change.
        positions: Where it acts; empty for the positions of the settings.
        set_kind: Role of its condition.
        tuned: Whether the selection halves choose its dose.
        reads_set: Whether it reads what the transplant of the selected set reads.
        reads_donor: Whether it reads the donor's residual.
        weight_rank: For a change of weights, its rank in every matrix; the residual stays as the changed weights make it.
    """

    name: str
    rank: int | None
    build: Callable[[RivalInput], Rewrite]
    positions: str = ""
    set_kind: SetKind = "rival"
    tuned: bool = False
    reads_set: bool = False
    reads_donor: bool = True
    weight_rank: int | None = None

    def reads(self, donor: str, of_set: Sequence[str]) -> list[str]:
        """Models other than the host whose residuals it reads; ``of_set`` are those that the transplant of the set reads."""
        names = [*(of_set if self.reads_set else ()), *([donor] if self.reads_donor else ())]
        return list(dict.fromkeys(names))


def ranks_of(n_features: int, d_model: int) -> list[int]:
    """`RANKS` and the size of the set, none beyond the width of the residual."""
    return sorted({min(rank, d_model) for rank in (*RANKS, n_features) if rank > 0})


def at_norm_of(own: Rewrite, other: Rewrite, host: str) -> Rewrite:
    """The change of ``other``, scaled to the norm of the change of ``own`` on every token; none where ``other`` makes none."""

    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        resid = x[host]
        change, turned = own(x) - resid, other(x) - resid
        ratio = change.norm(dim=-1, keepdim=True) / turned.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return resid + turned * ratio

    return rewrite


def placed(vectors: Tensor, like: Tensor) -> Tensor:
    """Vectors on the device and in the dtype of a residual."""
    return vectors.to(device=like.device, dtype=like.dtype if like.is_floating_point() else torch.float32)
