"""Gradients of a task metric at a site, averaged along a path of residuals and read through a dictionary's decoder.

What a sample's metric gains along a path r(a), a from 0 to 1, is the integral of ⟨∂metric / ∂r, dr/da⟩ (integrated
gradients, Sundararajan et al. 2017). Where r(a) is linear in the features, feature k takes its part through its own decoder
direction, so one gradient of the residual serves every feature. The integral is taken at the midpoints of ``steps`` equal
parts: its error is O(1/steps²).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from mechprobe.cache.harvest.forward_batches import padded
from mechprobe.dictionary.splicing import ReadSample
from mechprobe.models.residuals import recording, splice
from mechprobe.types import Site


@dataclass(frozen=True)
class ReadBatch:
    """Samples padded on the right.

    Attributes:
        ids: Token ids.
        attention: 1 where there is a token.
        kept: Positions that the crosscoder reconstructs.
        scored: Positions whose next token the metric may look at, see `read_batch`.
    """

    ids: Int[Tensor, "sample pos"]
    attention: Int[Tensor, "sample pos"]
    kept: Bool[Tensor, "sample pos"]
    scored: Bool[Tensor, "sample pos"]


Metric = Callable[[Tensor, ReadBatch], Tensor]
"""From logits ``[sample pos vocab]`` and what was read to one number per sample."""


def mean_log_prob(logits: Tensor, batch: ReadBatch) -> Float[Tensor, " sample"]:
    """Mean log-probability of the scored tokens of each sample, in nats: the default metric; 0 where none is scored."""
    log_probs = log_softmax(logits[:, :-1].double(), dim=-1)
    chosen = log_probs.gather(2, batch.ids[:, 1:].unsqueeze(2)).squeeze(2)
    scored = batch.scored[:, :-1].double()
    return (chosen * scored).sum(1) / scored.sum(1).clamp(min=1)


def read_batch(samples: Sequence[ReadSample], device: str, *, answered: bool) -> ReadBatch:
    """Samples padded on the right: what a causal model does at a position never depends on what follows it.

    Args:
        samples: The batch.
        device: Where it goes.
        answered: Whether any sample of all that is read, not of the batch alone, has a response. If so, response tokens are scored, and
            none of a sample without them; else all tokens are.
    """
    ids, attention = padded([sample.ids for sample in samples], 0)
    kept, scored = torch.zeros(2, *ids.shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        kept[row, : len(sample.ids)] = torch.tensor(sample.kept)
        target = torch.tensor(sample.response) if answered else torch.ones(len(sample.ids), dtype=torch.bool)
        scored[row, : len(sample.ids) - 1] = target[1:]
    return ReadBatch(ids.to(device), attention.to(device), kept.to(device), scored.to(device))


def read_batches(samples: Sequence[ReadSample], device: str, batch_size: int) -> Iterator[ReadBatch]:
    """All samples in their order, in batches; see `read_batch` for what is scored."""
    answered = any(any(sample.response) for sample in samples)
    for start in range(0, len(samples), batch_size):
        yield read_batch(samples[start : start + batch_size], device, answered=answered)


@torch.no_grad()
def clean_residual(model: nn.Module, site: Site, batch: ReadBatch) -> Float[Tensor, "sample pos d_model"]:
    """The model's own residual at the site, float32 or float64."""
    with recording(model, [site]) as found:
        model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
    resid = found[site]
    return resid if resid.dtype == torch.float64 else resid.float()


def spliced_logits(model: nn.Module, site: Site, resid: Tensor, batch: ReadBatch) -> Float[Tensor, "sample pos vocab"]:
    """Logits with ``resid`` put in at the site."""
    with splice(model, site, lambda old: resid.to(old.dtype)):
        return model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits


def mean_gradient(
    model: nn.Module,
    site: Site,
    resid_at: Callable[[float], Tensor],
    batch: ReadBatch,
    *,
    metric: Metric,
    steps: int,
) -> Float[Tensor, "row d_model"]:
    """Mean over the midpoints of a path from 0 to 1 of ∂metric / ∂residual, in float64.

    Args:
        model: Transformers module.
        site: Where the residual is put in.
        resid_at: The residual ``[sample pos d_model]`` at a point of the path.
        batch: What is read; the rows are its kept positions, sample by sample.
        metric: One number per sample; each depends on its own sample alone.
        steps: Midpoints.
    """
    gradient = None
    with torch.enable_grad():
        for step in range(steps):
            resid = resid_at((step + 0.5) / steps).requires_grad_()
            value = metric(spliced_logits(model, site, resid, batch), batch).sum()
            (found,) = torch.autograd.grad(value, resid)
            kept = found[batch.kept].double()
            gradient = kept if gradient is None else gradient + kept
    assert gradient is not None
    return gradient / steps


def sum_by_sample(
    acts: Float[Tensor, "row d_sae"],
    gradient: Float[Tensor, "row d_model"],
    decoder: Float[Tensor, "d_sae d_model"],
    batch: ReadBatch,
) -> Float[Tensor, "sample d_sae"]:
    """Σ_pos f_k ⟨W_k, gradient⟩ of every sample, in float64; one sample at a time, to hold little in memory."""
    counts, directions = batch.kept.sum(1).tolist(), decoder.double().T
    pairs = zip(acts.split(counts), gradient.split(counts), strict=True)
    return torch.stack([(f.double() * (g @ directions)).sum(0) for f, g in pairs])


@torch.no_grad()
def metric_at(
    model: nn.Module, site: Site, resid: Tensor, batch: ReadBatch, metric: Metric
) -> Float[Tensor, " sample"]:
    """The metric of every sample, in float64, with ``resid`` put in at the site."""
    return metric(spliced_logits(model, site, resid, batch), batch).double()
