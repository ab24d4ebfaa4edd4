"""Integrated gradients of every feature, on the path from the base model's features to the tuned model's.

Integrated gradients (Sundararajan et al. 2017, equation 1; for features of a dictionary Marks et al. 2024, arXiv
2403.19647) of a metric of the tuned model, with the features of both models on the same tokens::

    r(a)   = r_tuned − (1 − a) Σ_k c_k,   c_k = s_tuned f_k^tuned W_dec[k, tuned] − s_base f_k^base W_dec[k, base]
    IG_k   = Σ_pos ⟨c_k, mean over a of ∂metric / ∂r(a)⟩

r(1) is the unedited residual of the tuned model. r(0) is the same residual with every feature taken from base, while the
tuned model's bias and reconstruction error stay: the residual after a transplant of all features. Σ_k IG_k is therefore
the change of the metric under that transplant, up to the error of the steps.

Features change with their decoders and not with their activations alone, which is specific to mechprobe. With equal
decoders this is the usual formula. It also covers a shared feature whose decoder post-training rotated: under the
``joint`` read-out such a feature has the same activation in both models. J of `mechprobe.selection.rankings.pooled` is the
same sum without the direction of the gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.errors import SelectionError
from mechprobe.progress import progress
from mechprobe.selection.rankings.gradients import (
    CleanPasses,
    Metric,
    ResidualPath,
    Residuals,
    SampleBatch,
    mean_log_prob,
)
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class IntegratedGradients:
    """IG of every feature on every sample, and the metric of the tuned model at both ends of the path.

    ``metric`` is that of the unedited model, ``without`` that with base's features instead of its own.
    """

    effect: Float[ndarray, "sample d_sae"]
    metric: Float[ndarray, " sample"]
    without: Float[ndarray, " sample"]

    @property
    def completeness_gap(self) -> float:
        """|Σ IG − (metric − without)| / |metric − without| of the means over samples; NaN if nothing changes."""
        change = float((self.metric - self.without).mean())
        total = float(self.effect.sum(axis=1).mean())
        return abs(total - change) / abs(change) if change else float("nan")


def integrated_gradients(  # noqa: PLR0913 - a path has two ends, a read-out, a metric and its steps
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[TokenizedSample],
    *,
    base: str,
    tuned: str,
    readout: Readout,
    metric: Metric = mean_log_prob,
    steps: int = 16,
    batch_size: int = 32,
    together: int = 32,
) -> IntegratedGradients:
    """Integrated gradients of a metric of the tuned model, from base's features to its own.

    Args:
        crosscoder: The dictionary; base and tuned must have the same width.
        models: Its models by name, as transformers modules.
        site: Where the crosscoder was trained.
        samples: What the models read. The features of ``kept`` positions change; the metric uses ``response`` tokens, or
            all tokens if no sample has a response.
        base: Model at the start of the path.
        tuned: Model at the end of the path, whose metric is attributed.
        readout: Read-out of f^base and f^tuned.
        metric: The task metric, differentiable.
        steps: Points of the path.
        batch_size: Most samples in one forward pass; it changes no bit.
        together: Most samples that are padded to the same width.

    Raises:
        SelectionError: There is no sample.
    """
    if not samples:
        raise SelectionError("There is no sample to attribute; evaluate more samples.")
    decoder = {name: crosscoder.own_decoder(name) for name in (base, tuned)}

    def attributed(batch: SampleBatch, resid: Residuals) -> tuple[Tensor, ...]:
        acts = {
            name: readout.feature_acts(crosscoder, {key: values[batch.kept] for key, values in resid.items()}, name)
            for name in (base, tuned)
        }
        change = acts[tuned] @ decoder[tuned] - acts[base] @ decoder[base]
        path = ResidualPath(models[tuned], site, batch, metric, resid[tuned], resid[tuned][batch.kept], -change)
        gradient = path.mean_gradient(steps)
        own, other = (path.sum_by_sample(acts[name], gradient, decoder[name]) for name in (tuned, base))
        return own - other, path.metric_at(1.0), path.metric_at(0.0)

    parts: list[tuple[Tensor, ...]] = []
    with (
        CleanPasses(crosscoder, models, site, samples, batch_size=batch_size, together=together) as passes,
        progress(len(samples), "integrated gradients", unit="samples") as advance,
    ):
        for found in passes.each(attributed):
            parts += found
            advance(sum(len(part[0]) for part in found))
    effect, clean, without = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return IntegratedGradients(effect, clean, without)
