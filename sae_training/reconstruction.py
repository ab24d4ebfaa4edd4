"""How well and how sparsely a dictionary reconstructs: FVE, MSE, L0, dead latents and density.

The accumulators keep float64 sums and counts over batches, and compute the measures at the end. `VarianceSums` depends
on the activations alone; one of it serves every `ReconstructionSums` over the same tokens.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.parallel import ALONE, Division


class VarianceSums:
    """Sum over tokens of ||x_m - mean(x_m)||^2 of each source m.

    The sums are shifted by the mean of the first batch, so that a large mean does not cost digits.

    Attributes:
        widths: Columns of each source.
        shift: ``[d_all]``, subtracted from the activations; None before the first batch.
        n_tokens: Tokens seen.
    """

    def __init__(self, widths: Sequence[int], mean: Float[Tensor, " d_all"] | None = None) -> None:
        """Start without tokens.

        Args:
            widths: Columns of each source, side by side; ones to keep every column apart.
            mean: Mean of the activations where it is known. It replaces the mean of the first batch as the shift.
        """
        self.widths, self.shift = tuple(widths), mean
        self.n_tokens = 0
        self._moved = self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, x: Float[Tensor, "batch d_all"]) -> None:
        """Add a batch of activations."""
        if not len(x):
            return
        x = x.double()
        if self.shift is None:
            self.shift = x.mean(dim=0)
        centered = x - self.shift
        self.n_tokens += len(x)
        self._moved = self._moved + centered.sum(dim=0)
        self._squares = self._squares + squared_norms(centered, self.widths).sum(dim=0)

    def compute(self) -> Float[Tensor, " source"]:
        """The sums about the mean of all tokens; at least one token must have been added."""
        return self._squares - squared_norms(self._moved[None], self.widths)[0] / self.n_tokens


class ReconstructionSums:
    """Sums over tokens for one read-out of a dictionary, which reconstructs one or several sources.

    All measures need at least one token.

    Attributes:
        n_tokens: Tokens seen.
        error: ``[source]``, sum over tokens of ||x_m - x_hat_m||^2.
        active: ``[d_sae]``, tokens on which each latent is active.

    Example:
        >>> sums, variance = ReconstructionSums(), VarianceSums([2])
        >>> x, feature_acts = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> sums.update(feature_acts, x - x)
        >>> variance.update(x)
        >>> sums.fve(variance.compute()).item(), sums.l0, sums.dead_frac
        (1.0, 1.0, 0.5)
    """

    def __init__(self, widths: Sequence[int] | None = None) -> None:
        """Start without tokens.

        Args:
            widths: Columns of each source in the errors; None for one source.
        """
        self._widths = widths
        self.n_tokens = 0
        self.error = self._explained = torch.zeros((), dtype=torch.float64)
        self.active = torch.zeros((), dtype=torch.int64)

    def update(
        self,
        feature_acts: Float[Tensor, "batch d_sae"],
        error: Float[Tensor, "batch d_read"],
        variance: Float[Tensor, "batch source"] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            feature_acts: Latent activations; a latent is active where its activation is above zero.
            error: X - x_hat of the sources that are reconstructed.
            variance: ||x_m - mean||^2 of each token and source, which only `fve_per_token` needs.
        """
        widths = [error.shape[1]] if self._widths is None else self._widths
        self.n_tokens += len(feature_acts)
        self.active = self.active + (feature_acts > 0).sum(dim=0)
        if variance is None:
            squares = torch.stack([part.double().square().sum() for part in error.split(list(widths), dim=1)])
            explained = torch.full_like(squares, math.nan)
        else:
            by_token = squared_norms(error, widths)
            squares, explained = by_token.sum(dim=0), (1 - by_token / variance).sum(dim=0)
        self.error, self._explained = self.error + squares, self._explained + explained

    def fve(self, variance: Float[Tensor, " source"] | Float[Tensor, ""]) -> Float[Tensor, " source"]:
        """Fraction of variance explained: 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, both sums over all tokens.

        Args:
            variance: From `VarianceSums.compute` over the same tokens; one number for one source.
        """
        return fraction_explained(self.error, variance)

    @property
    def fve_per_token(self) -> Float[Tensor, " source"]:
        """Mean over tokens of 1 - ||x - x_hat||^2 / ||x - mean||^2; NaN where an update had no variance."""
        return self._explained / self.n_tokens

    @property
    def mse(self) -> Float[Tensor, " source"]:
        """Mean over tokens of ||x - x_hat||^2."""
        return self.error / self.n_tokens

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens on which each latent is active."""
        return self.active.double() / self.n_tokens

    @property
    def l0(self) -> float:
        """Mean number of active latents per token."""
        return float(self.active.sum()) / self.n_tokens

    @property
    def dead_frac(self) -> float:
        """Share of latents that are active on no token."""
        return float((self.active == 0).double().mean())


def squared_norms(x: Float[Tensor, "batch d_all"], widths: Sequence[int]) -> Float[Tensor, "batch source"]:
    """||x_m||^2 of each row and source, in float64."""
    if len(set(widths)) == 1:
        return x.double().square().unflatten(1, (len(widths), widths[0])).sum(dim=2)
    return torch.stack([part.double().square().sum(dim=1) for part in x.split(list(widths), dim=1)], dim=1)


def batch_fve(
    x: Float[Tensor, "batch d_all"],
    error: Float[Tensor, "batch d_all"],
    widths: Sequence[int],
    division: Division = ALONE,
    n_rows: int = 0,
) -> Float[Tensor, " source"]:
    """Fraction of variance explained per source, about the mean of this one batch; NaN where x is constant.

    Where each process has a part of the rows, ``n_rows`` is the number of rows of the whole batch.
    """
    mean = division.sum_(x.sum(dim=0)) / n_rows if division.by_tokens else x.mean(dim=0)
    variance = division.sum_of_tokens_(squared_norms(x - mean, widths).sum(dim=0))
    return fraction_explained(division.sum_of_tokens_(squared_norms(error, widths).sum(dim=0)), variance)


def fraction_explained(error: Tensor, variance: Tensor) -> Tensor:
    """1 - error / variance; NaN where the variance is zero."""
    return torch.where(variance > 0, 1 - error / variance, math.nan)


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
        fve_ordinary: By model, ``fve`` over the tokens that are not far, about their own mean; None where no token is far.
        n_far: Number of far tokens.
    """

    fve: dict[str, float]
    fve_all: float
    fve_per_token: dict[str, float]
    mse: dict[str, float]
    l0: float
    dead_frac: float
    density: Float[Tensor, " d_sae"]
    n_tokens: int
    fve_ordinary: dict[str, float] | None = None
    n_far: int = 0


def within(
    x: Float[Tensor, "batch d_all"], widths: Sequence[int], limits: Sequence[float | int]
) -> Bool[Tensor, " batch"]:
    """Whether no source of a token has a norm above its limit. Norms are computed in float64."""
    ends = torch.tensor(list(limits), dtype=torch.float64, device=x.device)
    return (squared_norms(x, widths).sqrt() <= ends).all(dim=1)


class _Ordinary:
    """FVE over the tokens that are not far. Until the first far token, the sums are those over all tokens."""

    def __init__(self, widths: Sequence[int], limits: Sequence[float | int]) -> None:
        self.widths, self.limits, self.n_far = widths, limits, 0
        self._sums: tuple[ReconstructionSums, VarianceSums] | None = None

    def update(
        self,
        raw: Float[Tensor, "batch d_all"],
        sums: tuple[ReconstructionSums, VarianceSums],
        new: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Add a batch before it is added to ``sums``; ``new`` holds its activations of latents and scaled x, and errors."""
        kept = within(raw, self.widths, self.limits)
        n_far = int((~kept).sum())
        if self._sums is None and n_far:
            self._sums = copy.deepcopy(sums)
        self.n_far += n_far
        if self._sums is not None and n_far < len(raw):
            feature_acts, x, error = (part[kept] for part in new)
            self._sums[1].update(x)
            self._sums[0].update(feature_acts, error)

    def fve(self) -> Float[Tensor, " source"] | None:
        """FVE by source; None without far tokens, and where every token is far."""
        if self._sums is None or not self._sums[1].n_tokens:
            return None
        return self._sums[0].fve(self._sums[1].compute())


@torch.no_grad()
def evaluate(
    crosscoder: Crosscoder,
    batches: Iterable[Tensor],
    *,
    far_norms: Sequence[float | int] | None = None,
    division: Division = ALONE,
) -> Metrics:
    """Measure a crosscoder on raw activations, with its nonlinearity of inference.

    Args:
        crosscoder: The dictionary.
        batches: Raw activations.
        far_norms: Norm of each source above which a token is far (`sae_training.weights.far_norm`), for
            ``fve_ordinary``; None does not look for far tokens.
        division: The processes that hold the latents; all of them call this with the same batches.

    Raises:
        SaeTrainingError: The stream is empty, or a batch has the wrong shape.
    """
    widths = crosscoder.config.widths
    sums, variance = ReconstructionSums(widths), VarianceSums(widths)
    ordinary = None if far_norms is None else _Ordinary(widths, far_norms)
    for batch in batches:
        raw = crosscoder.flatten(batch.to(crosscoder.device))
        x = crosscoder.scaled(raw)
        feature_acts = crosscoder.activate(torch.addmm(crosscoder.b_enc, x, crosscoder.encoder.T), division)
        if division.by_latents:
            x_hat = division.sum_(feature_acts @ crosscoder.decoder) + crosscoder.b_dec_flat
        else:
            x_hat = torch.addmm(crosscoder.b_dec_flat, feature_acts, crosscoder.decoder)
        x = x.double()
        if ordinary is not None:
            ordinary.update(raw, (sums, variance), (feature_acts, x, x - x_hat))
        variance.update(x)
        sums.update(feature_acts, x - x_hat, squared_norms(x - x.mean(dim=0), widths))
    if sums.n_tokens == 0:
        raise SaeTrainingError("evaluate: the stream of activations is empty; give at least one batch.")
    variances = variance.compute()
    sums.active = division.of_all_latents(sums.active, crosscoder.d_sae)

    def by_source(values: Float[Tensor, " source"]) -> dict[str, float]:
        return dict(zip(crosscoder.source_names, values.tolist(), strict=True))

    without_far = None if ordinary is None else ordinary.fve()
    return Metrics(
        fve=by_source(sums.fve(variances)),
        fve_all=float(fraction_explained(sums.error.sum(), variances.sum())),
        fve_per_token=by_source(sums.fve_per_token),
        mse=by_source(sums.mse),
        l0=float(sums.density.sum()),
        dead_frac=sums.dead_frac,
        density=sums.density,
        n_tokens=sums.n_tokens,
        fve_ordinary=None if without_far is None else by_source(without_far),
        n_far=0 if ordinary is None else ordinary.n_far,
    )
