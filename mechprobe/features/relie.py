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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from mechprobe.activations.passes import padded
from mechprobe.errors import StoreError
from mechprobe.features.splicing import ReadSample
from mechprobe.models.residuals import reading, splice
from mechprobe.progress import progress
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class ReadBatch:
    """Samples padded on the right.

    Attributes:
        ids: Token ids.
        attention: 1 where there is a token.
        kept: Positions that the crosscoder reconstructs.
        scored: Positions whose next token the metric may look at: response tokens, or all where there are none.
    """

    ids: Int[Tensor, "sample pos"]
    attention: Int[Tensor, "sample pos"]
    kept: Bool[Tensor, "sample pos"]
    scored: Bool[Tensor, "sample pos"]


Metric = Callable[[Tensor, ReadBatch], Tensor]
"""From logits ``[sample pos vocab]`` and what was read to one number per sample."""


@dataclass(frozen=True)
class IndirectEffects:
    """Indirect effects of every feature in every model.

    Attributes:
        models: Names, the columns of ``effect``.
        effect: IE, in units of the metric per sample; NaN nowhere, 0 where a feature never fires.
        error_effect: The same of the reconstruction error, per model.
        metric: Mean metric of each model as it is.
        emptied: Mean metric with every feature and the error taken away.
        n_samples: Samples behind the means.
    """

    models: tuple[str, ...]
    effect: Float[ndarray, "d_sae model"]
    error_effect: Float[ndarray, " model"]
    metric: Float[ndarray, " model"]
    emptied: Float[ndarray, " model"]
    n_samples: int

    @property
    def relie(self) -> Float[ndarray, "d_sae model"]:
        """`relative_effects` of the effects, one against all."""
        return relative_effects(self.effect)

    def only(self, models: Sequence[str]) -> "IndirectEffects":
        """The effects in some of the models: RelIE one against all is then among these alone."""
        chosen = [self.models.index(name) for name in models]
        return IndirectEffects(
            tuple(models),
            self.effect[:, chosen],
            self.error_effect[chosen],
            self.metric[chosen],
            self.emptied[chosen],
            self.n_samples,
        )

    def pairwise(self, first: str, second: str) -> Float[ndarray, " d_sae"]:
        """RelIE of ``second`` against ``first`` alone."""
        return self.only((first, second)).relie[:, 1]

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


def mean_log_prob(logits: Tensor, batch: ReadBatch) -> Float[Tensor, " sample"]:
    """Mean log-probability of the scored tokens of each sample, in nats: the default metric; 0 where none is scored."""
    log_probs = log_softmax(logits[:, :-1].double(), dim=-1)
    chosen = log_probs.gather(2, batch.ids[:, 1:].unsqueeze(2)).squeeze(2)
    scored = batch.scored[:, :-1].double()
    return (chosen * scored).sum(1) / scored.sum(1).clamp(min=1)


def indirect_effects(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[ReadSample],
    *,
    metric: Metric = mean_log_prob,
    steps: int = 8,
    batch_size: int = 32,
) -> IndirectEffects:
    """Indirect effects of every feature in every model of a crosscoder.

    Args:
        crosscoder: The dictionary.
        models: Every model of it by name, as transformers modules.
        site: Where the crosscoder reads.
        samples: What the models read; a task's prompts with the responses the metric is about.
        metric: The task metric, differentiable.
        steps: Points of the path.
        batch_size: Samples in one forward pass.

    Raises:
        StoreError: There is no sample.
    """
    if not samples:
        raise StoreError("There is no sample to measure indirect effects on; cache with another held_out_frac.")
    names = crosscoder.model_names
    effect = torch.zeros(crosscoder.d_sae, len(names), dtype=torch.float64)
    totals = torch.zeros(3, len(names), dtype=torch.float64)  # error effect, metric, emptied
    with progress(len(samples), "indirect effects", unit="samples") as advance:
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            batch = read_batch(part, str(crosscoder.device))
            residuals = [_residual(models[name], site, batch) for name in names]
            x = torch.stack(residuals, dim=2)
            with torch.no_grad():
                acts = crosscoder.encode(x[batch.kept])
            for index, name in enumerate(names):
                path = _Path(crosscoder, name, acts, residuals[index], batch)
                of_features, of_error = path.effects(models[name], site, metric, steps)
                effect[:, index] += of_features.cpu()
                ends = (path.metric(models[name], site, metric, a) for a in (0.0, 1.0))
                totals[:, index] += torch.tensor([of_error, *ends], dtype=torch.float64)
            advance(len(part))
    n = len(samples)
    error_effect, clean, emptied = (totals / n).numpy()
    return IndirectEffects(tuple(names), (effect / n).numpy(), error_effect, clean, emptied, n)


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
        columns = crosscoder.columns(name)
        self.residual, self.batch, self.acts = residual, batch, acts
        self.decoder = (crosscoder.decoder[:, columns] * crosscoder.column_scale()[columns]).detach()
        self.bias = (crosscoder.b_dec_flat[columns] * crosscoder.column_scale()[columns]).detach()
        self.error = residual[batch.kept] - self.bias - acts @ self.decoder

    def at(self, a: float) -> Float[Tensor, "sample pos d_model"]:
        """The residual with features and error shrunk by 1 − a."""
        resid = self.residual.clone()
        resid[self.batch.kept] = self.bias + (1 - a) * (self.acts @ self.decoder + self.error)
        return resid

    @torch.no_grad()
    def metric(self, model: nn.Module, site: Site, metric: Metric, a: float) -> float:
        """Sum over samples of the metric at a."""
        return float(metric(_logits(model, site, self.at(a), self.batch), self.batch).double().sum())

    def effects(self, model: nn.Module, site: Site, metric: Metric, steps: int) -> tuple[Tensor, float]:
        """Sums over samples and positions: of every feature, and of the error."""
        gradient = torch.zeros_like(self.error, dtype=torch.float64)
        with torch.enable_grad():
            for step in range(steps):
                resid = self.at((step + 0.5) / steps).requires_grad_()
                value = metric(_logits(model, site, resid, self.batch), self.batch).sum()
                (found,) = torch.autograd.grad(value, resid)
                gradient += found[self.batch.kept].double()
        gradient /= steps
        # The spliced residual is linear in f and e: their gradients are the residual's, through the decoder.
        of_features = -(self.acts.double() * (gradient @ self.decoder.double().T)).sum(0)
        return of_features, -float((gradient * self.error.double()).sum())


def read_batch(samples: Sequence[ReadSample], device: str) -> ReadBatch:
    """Samples padded on the right: what a causal model does at a position never depends on what follows it."""
    ids, attention = padded([sample.ids for sample in samples], 0)
    kept, scored = torch.zeros(2, *ids.shape, dtype=torch.bool)
    answered = any(any(sample.response) for sample in samples)
    for row, sample in enumerate(samples):
        kept[row, : len(sample.ids)] = torch.tensor(sample.kept)
        target = torch.tensor(sample.response) if answered else torch.ones(len(sample.ids), dtype=torch.bool)
        scored[row, : len(sample.ids) - 1] = target[1:]
    return ReadBatch(ids.to(device), attention.to(device), kept.to(device), scored.to(device))


@torch.no_grad()
def _residual(model: nn.Module, site: Site, batch: ReadBatch) -> Float[Tensor, "sample pos d_model"]:
    with reading(model, [site]) as found:
        model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
    resid = found[site]
    return resid if resid.dtype == torch.float64 else resid.float()


def _logits(model: nn.Module, site: Site, resid: Tensor, batch: ReadBatch) -> Tensor:
    with splice(model, site, lambda old: resid.to(old.dtype)):
        return model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
