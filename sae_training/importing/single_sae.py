"""A read-only SAE of one model, for comparison with a crosscoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.errors import SaeTrainingError
from sae_training.reconstruction import ReconstructionSums, VarianceSums


@dataclass(frozen=True)
class SaeMetrics:
    """Measures of one SAE over a stream of tokens; defined as in `sae_training.Metrics`.

    Attributes:
        fve: 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, both sums over all tokens.
        l0: mean number of active features per token.
        dead_frac: share of features active on no token.
        density: share of tokens on which each feature is active.
        n_tokens: tokens seen.
    """

    fve: float
    l0: float
    dead_frac: float
    density: Float[Tensor, " d_sae"]
    n_tokens: int


@dataclass(frozen=True)
class SingleSae:
    """An SAE over one model's raw activations.

    ``h = x W_enc + b_enc``; f = h where h > threshold and h > 0, or the k highest positive ones; ``x_hat = f W_dec + b_dec``.

    Attributes:
        W_enc: ``[d_model d_sae]``.
        W_dec: ``[d_sae d_model]``.
        b_enc: ``[d_sae]``.
        b_dec: ``[d_model]``.
        threshold: ``[d_sae]``, on h; zeros for a ReLU.
        k: features per token for a topk SAE, else None.
        source: where it was read from.
        metadata: what its file says of model, hook and training.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor
    k: int | None = None
    source: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.W_enc.shape[1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SingleSae:
        """A copy on another device or in another dtype."""
        names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        return replace(self, **{name: getattr(self, name).to(device=device, dtype=dtype) for name in names})

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_sae"]:
        """Features of raw activations; a row's features never depend on the other rows."""
        if x.shape[1] != self.d_model:
            raise SaeTrainingError(
                f"activations have width {x.shape[1]} where the SAE {self.source or ''} takes {self.d_model}; "
                "give the activations of the model that it was trained on."
            )
        hidden_pre = torch.addmm(self.b_enc, x.to(self.W_enc.dtype), self.W_enc)
        if self.k is None:
            return torch.relu(hidden_pre) * (hidden_pre > self.threshold)
        kept = torch.topk(hidden_pre, self.k, dim=1, sorted=False)
        return torch.zeros_like(hidden_pre).scatter(1, kept.indices, torch.relu(kept.values))

    def decode(self, feature_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_model"]:
        """Reconstructed raw activations."""
        return torch.addmm(self.b_dec, feature_acts, self.W_dec)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Tensor]) -> SaeMetrics:
        """Measure on raw activations ``[batch d_model]``, with sums in float64.

        Raises:
            SaeTrainingError: the stream is empty or of another width.
        """
        sums, variance = ReconstructionSums(), VarianceSums([self.d_model])
        for batch in batches:
            x = batch.to(self.W_enc.device)
            feature_acts = self.encode(x)
            variance.update(x)
            sums.update(feature_acts, x.double() - self.decode(feature_acts))
        if sums.n_tokens == 0:
            raise SaeTrainingError("evaluate: the stream of activations is empty; give at least one batch.")
        fve = float(sums.fve(variance.compute()))
        return SaeMetrics(fve, sums.l0, sums.dead_frac, sums.density, sums.n_tokens)
