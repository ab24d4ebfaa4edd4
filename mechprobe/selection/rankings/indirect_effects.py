"""Indirect effects of features on a task metric (arXiv 2509.05291).

The indirect effect of feature k in model m is the change of the metric if the feature were removed, estimated by
integrated gradients through the reconstruction spliced into the model::

    IE_m[k] = mean over samples of Σ_pos (0 − f_k) · mean over a of ∂metric / ∂f_k at ((1 − a) f, (1 − a) e_m)

f are the joint activations and e_m is the reconstruction error of m, which stays in the model and shrinks along the same
path, as in the authors' code; a runs from 0 to 1. Special tokens, which stores leave out, do not change. The authors take
a = 0, 1/n, ...; the midpoints taken here make the effects of all features and of the error sum to the difference of the
metric up to O(1/n²). The path ends at the decoder's bias. If the bias is small, a norm layer makes the metric jump at the
very end of the path, where no step lies; `IndirectEffects.completeness_gap` measures what is missed.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.errors import StoreError
from mechprobe.progress import progress
from mechprobe.selection.rankings.gradients import (
    CleanPasses,
    Metric,
    ResidualPath,
    Residuals,
    SampleBatch,
    mean_log_prob,
)
from mechprobe.selection.rankings.relie import IndirectEffects
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class SampleEffects:
    """Indirect effects in one model on the samples of one batch, in units of the metric."""

    model: str
    features: Float[Tensor, "sample d_sae"]
    totals: Float[Tensor, "3"]
    """Sums over the samples of the error's effect, of the metric, and of the metric without features and error."""


def sample_effects(  # noqa: PLR0913 - a path, a metric and its steps
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[TokenizedSample],
    *,
    of: Sequence[str],
    metric: Metric = mean_log_prob,
    steps: int = 8,
    batch_size: int = 32,
    together: int = 32,
) -> Iterator[SampleEffects]:
    """Indirect effects of every sample: model by model, and in each, batch by batch in the order of the samples.

    Args:
        crosscoder: The dictionary.
        models: Its models by name, as transformers modules.
        site: Where the crosscoder was trained.
        samples: What the models read. Response tokens are scored, or all tokens if no sample has a response.
        of: Models in which effects are measured; the activations are those of all models.
        metric: The task metric, differentiable.
        steps: Points of the path.
        batch_size: Most samples in one forward pass; it changes no bit.
        together: Most samples that are padded to the same width.

    Raises:
        StoreError: There is no sample.
    """
    if not samples:
        raise StoreError("There is no sample to measure indirect effects on; cache with another held_out_frac.")
    with (
        CleanPasses(crosscoder, models, site, samples, batch_size=batch_size, together=together) as passes,
        progress(len(samples) * len(of), "indirect effects", unit="samples") as advance,
    ):
        for name in of:
            measured = partial(_measured, crosscoder, models, name, (site, metric, steps))
            for found in passes.each(measured):
                of_features, of_error, clean, emptied = map(torch.cat, zip(*found, strict=True))
                totals = [-float(of_error.sum()), float(clean.sum()), float(emptied.sum())]
                yield SampleEffects(name, of_features, torch.tensor(totals, dtype=torch.float64))
                advance(len(of_features))


def _measured(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    name: str,
    how: tuple[Site, Metric, int],
    batch: SampleBatch,
    resid: Residuals,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Effects of the features on every sample, ⟨gradient, error⟩ by entry, and the metric at both ends of the path."""
    site, metric, steps = how
    bias, decoder = crosscoder.own_bias(name), crosscoder.own_decoder(name)
    with torch.no_grad():
        x = torch.stack([resid[other] for other in crosscoder.model_names], dim=2)
        acts = crosscoder.encode(x[batch.kept])
    error = resid[name][batch.kept] - bias - acts @ decoder
    content = acts @ decoder + error
    path = ResidualPath(models[name], site, batch, metric, resid[name], bias, content)
    gradient = path.mean_gradient(steps)
    # The spliced residual is linear in f and e, so their gradients are the residual's, through the decoder.
    of_features = -path.sum_by_sample(acts, gradient, decoder)
    return of_features, gradient * error.double(), path.metric_at(0.0), path.metric_at(1.0)


def indirect_effects(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[TokenizedSample],
    *,
    metric: Metric = mean_log_prob,
    steps: int = 8,
    batch_size: int = 32,
    groups: Sequence[str] | None = None,
) -> IndirectEffects:
    """Mean indirect effects of every feature in every model of a crosscoder, see `sample_effects`.

    Each model is used in two stretches, so ``models`` may keep one in memory at a time. ``groups`` names the group of every sample, for example its prompt. Samples of a group depend on each other, so a
    bootstrap draws them together. None makes every sample a group.

    Raises:
        StoreError: There is no sample.
        ValueError: The number of groups' names is not the number of samples.
    """
    names, n = tuple(crosscoder.model_names), len(samples)
    numbers: dict[Hashable, int] = {}
    place = [numbers.setdefault(group, len(numbers)) for group in (range(n) if groups is None else groups)]
    if len(place) != n:
        raise ValueError(f"{len(place)} names of groups for {n} samples; give one for each")
    totals = torch.zeros(3, len(names), dtype=torch.float64)  # error effect, metric, emptied
    by_group = np.zeros((len(numbers), crosscoder.d_sae, len(names)))
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
