"""Gradients of a task metric at a site, averaged along a path of residuals and projected on a dictionary's decoder.

The change of a metric along a path r(a), with a from 0 to 1, is the integral of ⟨∂metric / ∂r, dr/da⟩ (integrated
gradients, Sundararajan et al. 2017). If r(a) is linear in the features, feature k contributes through its own decoder
direction, so one gradient of the residual serves every feature. The integral is approximated at the midpoints of
``steps`` equal parts, with an error of O(1/steps²).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechprobe.cache.harvest.forward_batches import padded
from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.memory import in_parts
from mechprobe.models.blocks import recording, splice
from mechprobe.models.head import Head
from mechprobe.models.log_probs import token_log_probs
from mechprobe.models.one_by_one import TensorFiles
from mechprobe.progress import progress
from mechprobe.ranks import in_turns, sharing
from mechprobe.types import Site
from sae_training import Crosscoder

T = TypeVar("T")

GRADIENT_TOKENS = 4096
"""Tokens in one pass with gradients, padding included: it keeps the activations of every later block."""


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

    def rows(self, part: slice) -> "SampleBatch":
        """Some of the samples, padded as in the whole batch."""
        return SampleBatch(self.ids[part], self.attention[part], self.kept[part], self.scored[part])


@dataclass(frozen=True)
class FinalStates:
    """What a model computes from a batch, up to the input of its unembedding; see `Head.states`."""

    head: Head
    states: Float[Tensor, "sample pos width"]

    def log_probs(self, batch: SampleBatch) -> Float[Tensor, "sample pos"]:
        """Log-probability of the next token at the scored positions, in nats and float64; 0 at others."""
        scored = batch.scored[:, :-1]
        found = token_log_probs(self.head, self.states[:, :-1][scored], batch.ids[:, 1:][scored])
        return torch.zeros(scored.shape, dtype=found.dtype, device=found.device).masked_scatter(
            scored.to(found.device), found
        )

    def logits(self) -> Float[Tensor, "sample pos vocab"]:
        """All logits, which take far more memory than log-probabilities of single tokens."""
        return self.head.logits(self.states.flatten(0, 1)).unflatten(0, self.states.shape[:2])


Metric = Callable[[FinalStates, SampleBatch], Tensor]
"""From a model's final states on a batch to one number per sample. Each depends on its own sample alone."""


def mean_log_prob(found: FinalStates, batch: SampleBatch) -> Float[Tensor, " sample"]:
    """Mean log-probability of the scored tokens of each sample, in nats; 0 for a sample without scored tokens."""
    scored = batch.scored[:, :-1].double()
    return (found.log_probs(batch) * scored).sum(1) / scored.sum(1).clamp(min=1)


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


Residuals = Mapping[str, Float[Tensor, "sample pos d_model"]]


class CleanPasses:
    """Batches of samples with the residuals of all models of a crosscoder at its site, kept in files.

    The models run one after another, so that one is in memory at a time.
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        models: Mapping[str, nn.Module],
        site: Site,
        samples: Sequence[TokenizedSample],
        *,
        batch_size: int,
        together: int,
    ) -> None:
        """Run the models.

        Args:
            crosscoder: The dictionary.
            models: Its models by name.
            site: Where the crosscoder was trained.
            samples: What the models read.
            batch_size: Most samples in a forward pass; it changes no bit.
            together: Most samples that are padded to the same width. A batch has at most `GRADIENT_TOKENS` tokens, too.
        """
        self._crosscoder, self._names = crosscoder, crosscoder.model_names
        self._batch_size, self._files = batch_size, TensorFiles()
        self._batches = list(_batches(crosscoder, samples, together))
        own = {number: batch for number, batch in enumerate(self._batches) if sharing().owns(number)}
        total = len(self._names) * sum(len(batch.ids) for batch in own.values())
        with progress(total, "clean passes", unit="samples", inner=True) as advance:
            for name in self._names:
                for number, batch in own.items():
                    parts = self._in_parts(
                        lambda rows, _, name=name: clean_residual(models[name], site, rows), batch, {}
                    )
                    self._files.write(number, name, resid=torch.cat(parts))
                    advance(len(batch.ids))

    def __enter__(self) -> "CleanPasses":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.__exit__()

    def each(self, work: Callable[[SampleBatch, Residuals], T]) -> Iterator[list[T]]:
        """Results of work on the parts of every batch, in order; several processes divide the batches.

        Positions that the crosscoder does not describe (`TokenRule`) are not kept.
        """

        def of_batch(number: int) -> list[T]:
            batch = self._batches[number]
            resid = {name: self._files.read(number, name, device=device)["resid"] for name in self._names}
            described = TokenRule.of(self._crosscoder).by_norm(resid)
            kept = batch if described is None else replace(batch, kept=batch.kept & described)
            return self._in_parts(work, kept, resid)

        device = str(self._crosscoder.device)
        return in_turns(of_batch, range(len(self._batches)), device=device)

    def _in_parts(self, work: Callable[[SampleBatch, Residuals], T], batch: SampleBatch, resid: Residuals) -> list[T]:
        """Results of work on parts of a batch with its residuals."""

        def of_rows(part: slice) -> T:
            return work(batch.rows(part), {name: values[part] for name, values in resid.items()})

        return in_parts(of_rows, len(batch.ids), most=self._batch_size, what="Gradients", unit="samples")


def _batches(crosscoder: Crosscoder, samples: Sequence[TokenizedSample], together: int) -> Iterator[SampleBatch]:
    answered, rule = any(any(sample.response) for sample in samples), TokenRule.of(crosscoder)
    longest = max((len(sample.ids) for sample in samples), default=1)
    size = max(1, min(together, GRADIENT_TOKENS // longest))
    for start in range(0, len(samples), size):
        part = rule.without_first(samples[start : start + size])
        yield pad_samples(part, str(crosscoder.device), answered=answered)


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
        batch, head = self.batch, Head(self.model)
        with splice(self.model, self.site, lambda old: resid.to(old.dtype)):
            states = head.states(batch.ids, batch.attention)
        return self.metric(FinalStates(head, states), batch)
