"""How well a crosscoder reconstructs each model, and how sparsely; sums in float64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError


@dataclass(frozen=True)
class Metrics:
    """Measures of a crosscoder over a stream of tokens.

    With several sites everything said per model is per source, the pair ``model/site``.

    Attributes:
        fve: per model, 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, both sums over all tokens.
        fve_all: the same over all models together, each divided by its scale.
        fve_per_token: per model, the mean over tokens of 1 - ||x - x_hat||^2 / ||x - mean(x)||^2 with the mean of the
            token's batch; one token close to the mean can dominate it: read it beside `fve`, never instead.
        mse: per model, the mean over tokens of ||x - x_hat||^2 in scaled units; does not depend on the batch size.
        l0: mean number of active features per token.
        dead_frac: share of features active on no token.
        density: share of tokens on which each feature is active.
        n_tokens: tokens seen.
    """

    fve: dict[str, float]
    fve_all: float
    fve_per_token: dict[str, float]
    mse: dict[str, float]
    l0: float
    dead_frac: float
    density: Float[Tensor, " d_sae"]
    n_tokens: int


def squared_norms(x: Float[Tensor, "batch d_all"], widths: Sequence[int]) -> Float[Tensor, "batch model"]:
    """||x_m||^2 of each row and model, in float64."""
    return torch.stack([part.double().square().sum(dim=1) for part in x.split(list(widths), dim=1)], dim=1)


def batch_fve(
    x: Float[Tensor, "batch d_all"], error: Float[Tensor, "batch d_all"], widths: Sequence[int]
) -> Float[Tensor, " model"]:
    """Fraction of variance explained per model, about the mean of this one batch; NaN where x is constant."""
    total = squared_norms(x - x.mean(dim=0), widths).sum(dim=0)
    left = squared_norms(error, widths).sum(dim=0)
    return fraction_explained(left, total)


@torch.no_grad()
def evaluate(crosscoder: Crosscoder, batches: Iterable[Tensor]) -> Metrics:
    """Measure a crosscoder on raw activations, with its inference features.

    Raises:
        SaeTrainingError: for an empty stream and for a batch of the wrong shape.
    """
    sums = _Sums(crosscoder)
    for batch in batches:
        sums.add(batch)
    return sums.metrics()


class _Sums:
    """Sums over tokens, shifted by the first batch's mean so that a large mean costs no digits."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self.crosscoder = crosscoder
        self.n_tokens = 0
        self.active = torch.zeros(crosscoder.d_sae, dtype=torch.int64, device=crosscoder.device)
        zeros = torch.zeros(crosscoder.config.n_sources, dtype=torch.float64, device=crosscoder.device)
        self.left, self.total, self.ratio = zeros, zeros, zeros
        self.shift = torch.zeros(crosscoder.config.d_all, dtype=torch.float64, device=crosscoder.device)
        self.moved = torch.zeros_like(self.shift)

    def add(self, batch: Tensor) -> None:
        """Count one batch."""
        crosscoder, widths = self.crosscoder, self.crosscoder.config.widths
        x = crosscoder.scaled(batch.to(crosscoder.device))
        feature_acts = crosscoder.activate(torch.addmm(crosscoder.b_enc, x, crosscoder.encoder.T))
        x_hat = torch.addmm(crosscoder.b_dec_flat, feature_acts, crosscoder.decoder)
        x = x.double()
        if self.n_tokens == 0:
            self.shift = x.mean(dim=0)
        self.n_tokens += x.shape[0]
        self.active += (feature_acts > 0).sum(dim=0)
        left = squared_norms(x - x_hat, widths)
        self.left = self.left + left.sum(dim=0)
        self.moved += (x - self.shift).sum(dim=0)
        self.total = self.total + squared_norms(x - self.shift, widths).sum(dim=0)
        self.ratio = self.ratio + (1 - left / squared_norms(x - x.mean(dim=0), widths)).sum(dim=0)

    def metrics(self) -> Metrics:
        """The measures of everything counted."""
        if self.n_tokens == 0:
            raise SaeTrainingError("evaluate: the stream of activations is empty; give at least one batch.")
        names, widths = self.crosscoder.source_names, self.crosscoder.config.widths
        drift = squared_norms((self.moved / self.n_tokens)[None], widths)[0]
        total = self.total - self.n_tokens * drift

        def by_model(values: Tensor) -> dict[str, float]:
            return dict(zip(names, values.tolist(), strict=True))

        density = self.active.double() / self.n_tokens
        return Metrics(
            fve=by_model(fraction_explained(self.left, total)),
            fve_all=float(fraction_explained(self.left.sum(), total.sum())),
            fve_per_token=by_model(self.ratio / self.n_tokens),
            mse=by_model(self.left / self.n_tokens),
            l0=float(density.sum()),
            dead_frac=float((self.active == 0).double().mean()),
            density=density,
            n_tokens=self.n_tokens,
        )


def fraction_explained(left: Tensor, total: Tensor) -> Tensor:
    """1 - left / total; NaN where there is nothing to explain."""
    return torch.where(total > 0, 1 - left / total, float("nan"))
