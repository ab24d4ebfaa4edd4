"""An SAE of one model for inference, to compare with a crosscoder."""

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
    """Measures of one SAE over a stream of tokens, defined as in `sae_training.Metrics`.

    Attributes:
        fve: 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, both sums over all tokens.
        l0: Mean number of active latents per token.
        dead_frac: Share of latents that are active on no token.
        density: ``[d_sae]``, share of tokens on which each latent is active.
        n_tokens: Number of tokens.
    """

    fve: float
    l0: float
    dead_frac: float
    density: Float[Tensor, " d_sae"]
    n_tokens: int


@dataclass(frozen=True)
class SingleSae:
    """An SAE over one model's raw activations.

    ``h = x W_enc + b_enc`` and ``x_hat = f W_dec + b_dec``. A latent activation is f = h where h > threshold and h > 0,
    or where h is among the k highest positive ones, and 0 elsewhere.

    Attributes:
        W_enc: Encoder ``[d_model d_sae]``.
        W_dec: Decoder ``[d_sae d_model]``.
        b_enc: Encoder bias ``[d_sae]``.
        b_dec: Decoder bias ``[d_model]``.
        threshold: Threshold ``[d_sae]`` on h; zeros for a ReLU.
        k: Latents per token for a topk SAE, else None.
        source: Folder that it was read from.
        metadata: Model, hook and training, as its file describes them.
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
        """Number of latents."""
        return self.W_enc.shape[1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SingleSae":
        """Copy it to another device or dtype."""
        names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        return replace(self, **{name: getattr(self, name).to(device=device, dtype=dtype) for name in names})

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_sae"]:
        """Latent activations of raw activations; those of a row do not depend on the other rows."""
        if x.shape[1] != self.d_model:
            raise SaeTrainingError(
                f"activations have width {x.shape[1]}, but the SAE {self.source or ''} takes {self.d_model}; "
                "give activations of the model that it was trained on."
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
        """Measure the SAE on raw activations ``[batch d_model]``.

        Raises:
            SaeTrainingError: The stream is empty, or its activations have another width.
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
