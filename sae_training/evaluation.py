"""How well and how sparsely a crosscoder reconstructs each model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.reconstruction import ReconstructionSums, VarianceSums, fraction_explained, squared_norms


@dataclass(frozen=True)
class Metrics:
    """Measures of a crosscoder over a stream of tokens.

    With several sites, measures by model are measures by source, the pair ``model/site``.

    Attributes:
        fve: By model, 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, both sums over all tokens.
        fve_all: FVE of all models together, each divided by its scale.
        fve_per_token: By model, the mean over tokens of 1 - ||x - x_hat||^2 / ||x - mean(x)||^2, with the mean of the
            token's batch. One token close to the mean can dominate it, so it does not replace ``fve``.
        mse: By model, the mean over tokens of ||x - x_hat||^2 in scaled units.
        l0: Mean number of active latents per token.
        dead_frac: Share of latents that are active on no token.
        density: ``[d_sae]``, share of tokens on which each latent is active.
        n_tokens: Number of tokens.
    """

    fve: dict[str, float]
    fve_all: float
    fve_per_token: dict[str, float]
    mse: dict[str, float]
    l0: float
    dead_frac: float
    density: Float[Tensor, " d_sae"]
    n_tokens: int


@torch.no_grad()
def evaluate(crosscoder: Crosscoder, batches: Iterable[Tensor]) -> Metrics:
    """Measure a crosscoder on raw activations, with its nonlinearity of inference.

    Raises:
        SaeTrainingError: The stream is empty, or a batch has the wrong shape.
    """
    widths = crosscoder.config.widths
    sums, variance = ReconstructionSums(widths), VarianceSums(widths)
    for batch in batches:
        x = crosscoder.scaled(batch.to(crosscoder.device))
        feature_acts = crosscoder.activate(torch.addmm(crosscoder.b_enc, x, crosscoder.encoder.T))
        x_hat = torch.addmm(crosscoder.b_dec_flat, feature_acts, crosscoder.decoder)
        x = x.double()
        variance.update(x)
        sums.update(feature_acts, x - x_hat, squared_norms(x - x.mean(dim=0), widths))
    if sums.n_tokens == 0:
        raise SaeTrainingError("evaluate: the stream of activations is empty; give at least one batch.")
    return _metrics(sums, variance.compute(), crosscoder.source_names)


def _metrics(sums: ReconstructionSums, variance: Float[Tensor, " source"], names: Sequence[str]) -> Metrics:
    def by_source(values: Float[Tensor, " source"]) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    return Metrics(
        fve=by_source(sums.fve(variance)),
        fve_all=float(fraction_explained(sums.error.sum(), variance.sum())),
        fve_per_token=by_source(sums.fve_per_token),
        mse=by_source(sums.mse),
        l0=float(sums.density.sum()),
        dead_frac=sums.dead_frac,
        density=sums.density,
        n_tokens=sums.n_tokens,
    )
