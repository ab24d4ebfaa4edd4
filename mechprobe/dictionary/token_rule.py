"""Which positions a crosscoder describes: those that its store did not drop, found again on any tokens.

A store drops the first positions of a sequence (``drop_first_positions``) and positions of enormous norm (``drop_norm_above``).
The crosscoder's configuration holds both, the norms as absolute numbers, so features, selection and edits apply the same rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_training import Crosscoder

Sample = TypeVar("Sample")
"""A dataclass with a mask ``kept`` of its positions, such as `mechprobe.dictionary.splicing.TokenizedSample`."""


@dataclass(frozen=True)
class TokenRule:
    """The positions that a crosscoder does not describe.

    Attributes:
        first: Number of leading positions of each sequence, special tokens included.
        limits: Model to the norm of its residual above which a position is not described; empty without a limit.
    """

    first: int = 0
    limits: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, crosscoder: Crosscoder) -> "TokenRule":
        """The rule of a crosscoder of one site."""
        config = crosscoder.config
        limits = dict(zip(config.source_names, config.norm_limits, strict=True)) if config.norm_limits else {}
        return cls(config.drop_first_positions, limits)

    def __bool__(self) -> bool:
        return bool(self.first or self.limits)

    def without_first(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The samples with none of their first positions kept."""
        return [self._without_first(sample) for sample in samples] if self.first else samples

    def _without_first(self, sample: Any) -> Any:
        return replace(sample, kept=tuple(kept and place >= self.first for place, kept in enumerate(sample.kept)))

    def by_norm(self, x: Mapping[str, Tensor]) -> Bool[Tensor, "*batch"] | None:
        """Positions where no model of ``x`` exceeds its limit; None without limits. ``x`` holds ``[*batch d_model]``.

        Every model that is not in ``x`` counts as within its limit. Norms are computed in float32 or float64.
        """
        tested = [model for model in x if model in self.limits]
        if not tested:
            return None
        parts = [_norm(x[model]) <= self.limits[model] for model in tested]
        return reduce(torch.logical_and, [part.to(parts[0].device) for part in parts])

    def mask(self, position: Int[Tensor, "#batch pos"], x: Mapping[str, Tensor]) -> Bool[Tensor, "#batch pos"]:
        """Where both parts of the rule hold; ``position`` counts the tokens of each sequence from 0."""
        within, found = self.by_norm(x), position >= self.first
        return found if within is None else found.to(within.device) & within


def _norm(resid: Tensor) -> Tensor:
    return torch.linalg.vector_norm(
        resid, dim=-1, dtype=torch.float64 if resid.dtype == torch.float64 else torch.float32
    )
