"""Causal strength of a feature in each model: indirect effects and RelIE (arXiv 2509.05291).

The indirect effect of feature k in model m is what the task metric would lose if the feature were taken away,
estimated by integrated gradients through the reconstruction spliced into the model::

    IE_m[k] = mean over samples of Σ_pos (0 − f_k) · mean over a of ∂metric / ∂f_k at ((1 − a) f, (1 − a) e_m)

with f the joint activations, e_m the reconstruction error of m (kept in the model, and shrunk along the same path, as
in the authors' code) and a on a path from 0 to 1. Special tokens, which no store keeps, stay as they are. The authors
take a = 0, 1/n, ...; the midpoints taken here (ours) make the sum of all effects, with that of the error, equal the
difference of the metric up to O(1/n²). The path ends at the decoder's bias. Where that is small a norm layer makes the
metric jump at the very end, which no step sees: `IndirectEffects.completeness_gap` says how much is missed. Then::

    RelIE_m[k] = |IE_m[k]| / Σ_j |IE_j[k]|            one against all, rows sum to 1
    RelIE_ij[k] = |IE_j[k]| / (|IE_i[k]| + |IE_j[k]|)   pairwise
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from mechprobe.dictionary.splicing import ReadSample
from mechprobe.errors import StoreError
from mechprobe.progress import progress
from mechprobe.selection.rankings.gradients import (
    Metric,
    ReadBatch,
    clean_residual,
    mean_gradient,
    mean_log_prob,
    metric_at,
    read_batches,
    sum_by_sample,
)
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class IndirectEffects:
    """Indirect effects of every feature in every model.

    Attributes:
        models: Names, the columns of ``effect``.
        error_effect: ``effect`` of the reconstruction error, per model.
        metric: Mean metric of each model as it is.
        emptied: Mean metric with every feature and the error taken away.
        n_samples: Samples behind the means.
        by_group: Sums of the effects over the samples of each group, the unit that a bootstrap draws
            (`mechprobe.selection.rankings.relie_intervals`); a group is one sample unless groups were given. Ours, as the paper
            has no interval.
    """

    models: tuple[str, ...]
    error_effect: Float[ndarray, " model"]
    metric: Float[ndarray, " model"]
    emptied: Float[ndarray, " model"]
    n_samples: int
    by_group: Float[ndarray, "group d_sae model"]

    @cached_property
    def effect(self) -> Float[ndarray, "d_sae model"]:
        """IE, in units of the metric per sample; NaN nowhere, 0 where a feature never fires."""
        return self.by_group.sum(axis=0) / self.n_samples

    @property
    def n_groups(self) -> int:
        """Groups that the samples fall into."""
        return len(self.by_group)

    @property
    def relie(self) -> Float[ndarray, "d_sae model"]:
        """`relative_effects` of the effects, one against all."""
        return relative_effects(self.effect)

    def only(self, models: Sequence[str]) -> "IndirectEffects":
        """The effects in some of the models: RelIE one against all is then among these alone."""
        chosen = [self.models.index(name) for name in models]
        return IndirectEffects(
            tuple(models),
            self.error_effect[chosen],
            self.metric[chosen],
            self.emptied[chosen],
            self.n_samples,
            self.by_group[:, :, chosen],
        )

    def pairwise(self, first: str, second: str) -> Float[ndarray, " d_sae"]:
        """RelIE of ``second`` against ``first`` alone."""
        return relative_effects(self.effect[:, [self.models.index(name) for name in (first, second)]])[:, 1]

    @property
    def completeness_gap(self) -> Float[ndarray, " model"]:
        """|Σ effects + error effect − (emptied − metric)| / |emptied − metric|: what the path's steps miss."""
        total = self.emptied - self.metric
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.abs(self.effect.sum(axis=0) + self.error_effect - total) / np.abs(total)


def relative_effects(effect: Float[ndarray, "d_sae model"]) -> Float[ndarray, "d_sae model"]:
    """RelIE: |effect| over its sum over models; NaN where a feature has no effect in any.

    Example:
        >>> relative_effects(np.array([[1.0, -3.0], [0.0, 0.0]]))
        array([[0.25, 0.75],
               [ nan,  nan]])
    """
    size = np.abs(np.asarray(effect, dtype=np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        return size / size.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class SampleEffects:
    """Indirect effects in one model, sample by sample, of one batch.

    Attributes:
        model: Whose.
        features: Effect of every feature on every sample, in units of the metric.
        totals: Sums over the samples of the error's effect, of the metric, and of the metric with all taken away.
    """

    model: str
    features: Float[Tensor, "sample d_sae"]
    totals: Float[Tensor, "3"]


def sample_effects(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[ReadSample],
    *,
    of: Sequence[str],
    metric: Metric = mean_log_prob,
    steps: int = 8,
    batch_size: int = 32,
) -> Iterator[SampleEffects]:
    """Indirect effects of every sample in the models ``of``, batch by batch in the order of the samples.

    Args:
        crosscoder: The dictionary.
        models: Every model of it by name, as transformers modules.
        site: Where the crosscoder reads.
        samples: What the models read; their response tokens are scored, or all tokens where no sample has one.
        of: Models that effects are measured in; the activations are of all.
        metric: The task metric, differentiable.
        steps: Points of the path.
        batch_size: Samples in one forward pass.

    Raises:
        StoreError: There is no sample.
    """
    if not samples:
        raise StoreError("There is no sample to measure indirect effects on; cache with another held_out_frac.")
    names = crosscoder.model_names
    with progress(len(samples), "indirect effects", unit="samples") as advance:
        for batch in read_batches(samples, str(crosscoder.device), batch_size):
            residuals = {name: clean_residual(models[name], site, batch) for name in names}
            with torch.no_grad():
                acts = crosscoder.encode(torch.stack([residuals[name] for name in names], dim=2)[batch.kept])
            for name in of:
                path = _Path(crosscoder, name, acts, residuals[name], batch)
                yield path.effects(models[name], site, metric, steps)
            advance(len(batch.ids))


def indirect_effects(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[ReadSample],
    *,
    metric: Metric = mean_log_prob,
    steps: int = 8,
    batch_size: int = 32,
    groups: Sequence[str] | None = None,
) -> IndirectEffects:
    """Mean indirect effects of every feature in every model of a crosscoder.

    Args:
        crosscoder: As in `sample_effects`, like all that follow but the last.
        models: Every model of it by name.
        site: Where the crosscoder reads.
        samples: What the models read.
        metric: The task metric.
        steps: Points of the path.
        batch_size: Samples in one forward pass.
        groups: Name of every sample's group, for example its prompt: samples that depend on each other and that a
            bootstrap must draw together. Every sample is a group when None.

    Raises:
        StoreError: There is no sample.
        ValueError: There are more or fewer groups' names than samples.
    """
    names, n = tuple(crosscoder.model_names), len(samples)
    place = _places(range(n) if groups is None else groups)
    if len(place) != n:
        raise ValueError(f"{len(place)} names of groups for {n} samples; give one for each")
    totals = torch.zeros(3, len(names), dtype=torch.float64)  # error effect, metric, emptied
    by_group = np.zeros((len(set(place)), crosscoder.d_sae, len(names)))
    seen = dict.fromkeys(names, 0)
    for found in sample_effects(
        crosscoder, models, site, samples, of=names, metric=metric, steps=steps, batch_size=batch_size
    ):
        column = names.index(found.model)
        totals[:, column] += found.totals
        for row in found.features.cpu().numpy():
            by_group[place[seen[found.model]], :, column] += row
            seen[found.model] += 1
    error_effect, clean, emptied = (totals / n).numpy()
    return IndirectEffects(names, error_effect, clean, emptied, n, by_group)


def _places(groups: Iterable[Hashable]) -> list[int]:
    """Number of every sample's group, counted by first appearance."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]


class _Path:
    """The way from one model's residual to one without features and error, on one batch."""

    def __init__(
        self,
        crosscoder: Crosscoder,
        name: str,
        acts: Tensor,
        residual: Float[Tensor, "sample pos d_model"],
        batch: ReadBatch,
    ) -> None:
        self.name, self.residual, self.batch, self.acts = name, residual, batch, acts
        self.decoder = crosscoder.own_decoder(name)
        self.bias = crosscoder.own_bias(name)
        self.error = residual[batch.kept] - self.bias - acts @ self.decoder

    def at(self, a: float) -> Float[Tensor, "sample pos d_model"]:
        """The residual with features and error shrunk by 1 − a."""
        resid = self.residual.clone()
        resid[self.batch.kept] = self.bias + (1 - a) * (self.acts @ self.decoder + self.error)
        return resid

    def effects(self, model: nn.Module, site: Site, metric: Metric, steps: int) -> SampleEffects:
        """Of every feature and of the error on every sample, summed over positions; and the metric at both ends."""
        gradient = mean_gradient(model, site, self.at, self.batch, metric=metric, steps=steps)
        # The spliced residual is linear in f and e: their gradients are the residual's, through the decoder.
        of_features = -sum_by_sample(self.acts, gradient, self.decoder, self.batch)
        of_error = -float((gradient * self.error.double()).sum())
        ends = (metric_at(model, site, self.at(a), self.batch, metric).sum() for a in (0.0, 1.0))
        return SampleEffects(self.name, of_features, torch.tensor([of_error, *map(float, ends)], dtype=torch.float64))
