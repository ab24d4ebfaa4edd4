"""Gradients of a task metric at a site, averaged along a path of residuals and projected on a dictionary's decoder.

The change of a metric along a path r(a), with a from 0 to 1, is the integral of ⟨∂metric / ∂r, dr/da⟩ (integrated
gradients, Sundararajan et al. 2017). If r(a) is linear in the features, feature k contributes through its own decoder
direction, so one gradient of the residual serves every feature. The integral is approximated at the midpoints of
``steps`` equal parts, with an error of O(1/steps²).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from mechprobe.cache.harvest.forward_batches import padded
from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.models.blocks import recording, splice
from mechprobe.progress import progress
from mechprobe.types import Site
from sae_training import Crosscoder

GRADIENT_TOKENS = 4096
"""Tokens in one pass with gradients, padding included: it keeps the activations of every later block and the logits in float64."""


@dataclass(frozen=True)
class SampleBatch:
    """Samples padded on the right.

    Attributes:
        ids: Token ids.
        attention: 1 for tokens, 0 for padding.
        kept: Positions that the crosscoder reconstructs.
        scored: Positions whose next token the metric may use, see `pad_samples`.
    """

    ids: Int[Tensor, "sample pos"]
    attention: Int[Tensor, "sample pos"]
    kept: Bool[Tensor, "sample pos"]
    scored: Bool[Tensor, "sample pos"]


Metric = Callable[[Tensor, SampleBatch], Tensor]
"""From logits ``[sample pos vocab]`` and their batch to one number per sample. Each depends on its own sample alone."""


def mean_log_prob(logits: Float[Tensor, "sample pos vocab"], batch: SampleBatch) -> Float[Tensor, " sample"]:
    """Mean log-probability of the scored tokens of each sample, in nats; 0 for a sample without scored tokens."""
    log_probs = log_softmax(logits[:, :-1].double(), dim=-1)
    chosen = log_probs.gather(2, batch.ids[:, 1:].unsqueeze(2)).squeeze(2)
    scored = batch.scored[:, :-1].double()
    return (chosen * scored).sum(1) / scored.sum(1).clamp(min=1)


def pad_samples(samples: Sequence[TokenizedSample], device: str, *, answered: bool) -> SampleBatch:
    """Samples padded on the right, where padding does not change what a causal model computes.

    ``answered`` says whether any sample of the whole data set, not only of this batch, has a response. If so, response
    tokens alone are scored, and a sample without a response has no scored token. Otherwise all tokens are scored.
    """
    ids, attention = padded([sample.ids for sample in samples], 0)
    kept, scored = torch.zeros(2, *ids.shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        kept[row, : len(sample.ids)] = torch.tensor(sample.kept)
        target = torch.tensor(sample.response) if answered else torch.ones(len(sample.ids), dtype=torch.bool)
        scored[row, : len(sample.ids) - 1] = target[1:]
    return SampleBatch(ids.to(device), attention.to(device), kept.to(device), scored.to(device))


def residual_batches(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[TokenizedSample],
    *,
    batch_size: int,
    description: str,
) -> Iterator[tuple[SampleBatch, dict[str, Float[Tensor, "sample pos d_model"]]]]:
    """Yield every batch of samples, in order, with the residuals of all models of a crosscoder at its site.

    A batch has at most ``batch_size`` samples and `GRADIENT_TOKENS` tokens. Positions that the crosscoder does not describe
    (`TokenRule`) are not kept.
    """
    rule = TokenRule.of(crosscoder)
    answered = any(any(sample.response) for sample in samples)
    batch_size = max(1, min(batch_size, GRADIENT_TOKENS // max((len(sample.ids) for sample in samples), default=1)))
    with progress(len(samples), description, unit="samples") as advance:
        for start in range(0, len(samples), batch_size):
            part = rule.without_first(samples[start : start + batch_size])
            batch = pad_samples(part, str(crosscoder.device), answered=answered)
            resid = {name: clean_residual(models[name], site, batch) for name in crosscoder.model_names}
            described = rule.by_norm(resid)
            yield batch if described is None else replace(batch, kept=batch.kept & described), resid
            advance(len(batch.ids))


@torch.no_grad()
def clean_residual(model: nn.Module, site: Site, batch: SampleBatch) -> Float[Tensor, "sample pos d_model"]:
    """The model's own residual at the site, in float32 or float64."""
    with recording(model, [site]) as found:
        model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
    resid = found[site]
    return resid if resid.dtype == torch.float64 else resid.float()


@dataclass(frozen=True)
class ResidualPath:
    """A path of residuals r(a), with a from 0 to 1, in one model on one batch.

    Attributes:
        model: Transformers module.
        site: Where the residual is replaced.
        batch: What the model reads.
        metric: The task metric, differentiable.
        residual: The model's own residual, which stays outside the kept positions.
        end: r(1) at the kept positions, sample by sample, or one vector for all.
        change: r(0) − r(1) at the kept positions.
    """

    model: nn.Module
    site: Site
    batch: SampleBatch
    metric: Metric
    residual: Float[Tensor, "sample pos d_model"]
    end: Float[Tensor, "row d_model"] | Float[Tensor, " d_model"]
    change: Float[Tensor, "row d_model"]

    def resid_at(self, a: float) -> Float[Tensor, "sample pos d_model"]:
        """r(a)."""
        resid = self.residual.clone()
        resid[self.batch.kept] = (self.end + (1 - a) * self.change).to(resid.dtype)
        return resid

    def mean_gradient(self, steps: int) -> Float[Tensor, "row d_model"]:
        """Mean of ∂metric / ∂residual over the midpoints of ``steps`` parts, in float64.

        The rows are the kept positions of the batch, sample by sample.
        """
        total = torch.zeros_like(self.change, dtype=torch.float64)
        with torch.enable_grad():
            for step in range(steps):
                resid = self.resid_at((step + 0.5) / steps).requires_grad_()
                (gradient,) = torch.autograd.grad(self._value(resid).sum(), resid)
                total += gradient[self.batch.kept].double()
        return total / steps

    @torch.no_grad()
    def metric_at(self, a: float) -> Float[Tensor, " sample"]:
        """The metric of every sample at a point of the path, in float64."""
        return self._value(self.resid_at(a)).double()

    def sum_by_sample(
        self,
        acts: Float[Tensor, "row d_sae"],
        gradient: Float[Tensor, "row d_model"],
        decoder: Float[Tensor, "d_sae d_model"],
    ) -> Float[Tensor, "sample d_sae"]:
        """Σ_pos f_k ⟨W_k, gradient⟩ of every sample, in float64; one sample at a time, to save memory."""
        counts, directions = self.batch.kept.sum(1).tolist(), decoder.double().T
        pairs = zip(acts.split(counts), gradient.split(counts), strict=True)
        return torch.stack([(f.double() * (g @ directions)).sum(0) for f, g in pairs])

    def _value(self, resid: Tensor) -> Float[Tensor, " sample"]:
        batch = self.batch
        with splice(self.model, self.site, lambda old: resid.to(old.dtype)):
            logits = self.model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        return self.metric(logits, batch)
