"""Rankings by attribution: what of the right answer's log-probability each feature carries, by gradients.

The metric is the mean log-probability per token of a right answer, teacher-forced behind the prompt
(`mechprobe.selection.gained.right_answers`). Both rankings are means over the samples of G_t.

``ig``, integrated gradients (Sundararajan et al. 2017, equation 1; for features of a dictionary Marks et al. 2024,
arXiv 2403.19647) from base's features to the tuned model's, on the same tokens, in the tuned model::

    r(a)   = r_tuned − (1 − a) Σ_k c_k,   c_k = s_tuned f_k^tuned W_dec[k, tuned] − s_base f_k^base W_dec[k, base]
    IG_k   = Σ_pos ⟨c_k, mean over a of ∂metric / ∂r(a)⟩

r(1) is the tuned model as it is; r(0) is the same residual with every feature taken from base, the tuned model's bias and
reconstruction error left in: what a transplant of all features does. So Σ_k IG_k is what that transplant costs the metric, up
to the steps' error. That a feature moves with its decoder and not with its activation alone is ours: where the decoders are
equal it is the usual formula, and where post-training turned the decoder of a shared feature (``joint`` read-out: f is one
value) nothing else would see it. J of `mechprobe.selection.rankings.scores` is the same sum with the gradient's direction left out.

``relie``: −IE_k of the tuned model, where that is positive, times RelIE_k of tuned against base (arXiv 2509.05291;
`mechprobe.selection.rankings.relie`). The share alone ranks features of no effect highest; the product, and the sign (only a feature
whose loss costs the right answer counts), are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import ReadSample
from mechprobe.errors import SelectionError
from mechprobe.models.family import ModelFamily
from mechprobe.progress import progress
from mechprobe.selection.config import Attribution, SelectConfig
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
from mechprobe.selection.rankings.relie import relative_effects, sample_effects
from mechprobe.selection.stability import SampleValues
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class IntegratedGradients:
    """Integrated gradients of every feature on every sample, and the metric at both ends of the path.

    Attributes:
        effect: IG, in units of the metric.
        metric: Of the tuned model as it is.
        without: Of the tuned model with base's features in place of its own.
    """

    effect: Float[ndarray, "sample d_sae"]
    metric: Float[ndarray, " sample"]
    without: Float[ndarray, " sample"]

    @property
    def completeness_gap(self) -> float:
        """|Σ IG − (metric − without)| / |metric − without|, of the means over samples; NaN where nothing changes."""
        change = float((self.metric - self.without).mean())
        total = float(self.effect.sum(axis=1).mean())
        return abs(total - change) / abs(change) if change else float("nan")


def integrated_gradients(  # noqa: PLR0913 - a path has two ends, a read-out, a metric and its steps
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[ReadSample],
    *,
    base: str,
    tuned: str,
    readout: Readout,
    metric: Metric = mean_log_prob,
    steps: int = 16,
    batch_size: int = 32,
) -> IntegratedGradients:
    """Integrated gradients of a metric of the tuned model along the way from base's features to its own.

    Args:
        crosscoder: The dictionary; base and tuned must have one width.
        models: Every model of it by name, as transformers modules.
        site: Where the crosscoder reads.
        samples: What the models read; the features of ``kept`` positions move, the metric looks at ``response``,
            or at all tokens where no sample has one.
        base: Where the path begins.
        tuned: Where it ends, and whose metric it is.
        readout: How f^base and f^tuned are read.
        metric: Differentiable, one number per sample.
        steps: Points of the path.
        batch_size: Samples in one forward pass.

    Raises:
        SelectionError: There is no sample.
    """
    if not samples:
        raise SelectionError("There is no sample to attribute; evaluate more samples.")
    parts: list[tuple[Tensor, ...]] = []
    with progress(len(samples), "integrated gradients", unit="samples") as advance:
        for batch in read_batches(samples, str(crosscoder.device), batch_size):
            path = _Path(crosscoder, models, site, batch, base=base, tuned=tuned, readout=readout)
            parts.append(path.effects(models[tuned], site, metric, steps))
            advance(len(batch.ids))
    effect, clean, without = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return IntegratedGradients(effect, clean, without)


class _Path:
    """The way from base's features to the tuned model's in the tuned model's residual, on one batch."""

    def __init__(
        self,
        crosscoder: Crosscoder,
        models: Mapping[str, nn.Module],
        site: Site,
        batch: ReadBatch,
        *,
        base: str,
        tuned: str,
        readout: Readout,
    ) -> None:
        resid = {name: clean_residual(models[name], site, batch) for name in crosscoder.model_names}
        kept = {name: values[batch.kept] for name, values in resid.items()}
        self.batch, self.residual = batch, resid[tuned]
        self.acts = {name: readout.feature_acts(crosscoder, kept, name) for name in (base, tuned)}
        self.decoder = {name: crosscoder.own_decoder(name) for name in (base, tuned)}
        self.base, self.tuned = base, tuned
        self.change = self.acts[tuned] @ self.decoder[tuned] - self.acts[base] @ self.decoder[base]

    def at(self, a: float) -> Float[Tensor, "sample pos d_model"]:
        """The residual with the features' change shrunk to a."""
        resid = self.residual.clone()
        resid[self.batch.kept] -= (1 - a) * self.change
        return resid

    def effects(self, model: nn.Module, site: Site, metric: Metric, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """``(IG [sample d_sae], metric at 1 [sample], metric at 0 [sample])``."""
        gradient = mean_gradient(model, site, self.at, self.batch, metric=metric, steps=steps)
        own, other = (
            sum_by_sample(self.acts[name], gradient, self.decoder[name], self.batch) for name in (self.tuned, self.base)
        )
        ends = [metric_at(model, site, self.at(a), self.batch, metric) for a in (1.0, 0.0)]
        return own - other, ends[0], ends[1]


@dataclass(frozen=True)
class Attributed:
    """A ranking by attribution.

    Attributes:
        samples: Its values sample by sample.
        quality: Task → samples, metric of the tuned model, metric at the path's other end, and the share of the change
            that the steps miss.
    """

    samples: SampleValues
    quality: dict[str, dict[str, Any]]


def attribute(
    kind: Attribution,
    crosscoder: Crosscoder,
    family: ModelFamily,
    answers: Mapping[str, Sequence[ReadSample]],
    *,
    site: Site,
    config: SelectConfig,
) -> Attributed:
    """Attribute the log-probability of the right answers of every task to the features.

    Args:
        kind: ``ig`` or ``relie``.
        crosscoder: The dictionary.
        family: Its models.
        answers: Task → prompts with right answers.
        site: Where the crosscoder reads.
        config: The two models, read-out, steps and batch size.

    Raises:
        SelectionError: A task has no sample.
    """
    models = {name: family[name].hf for name in crosscoder.model_names}
    maker = _by_gradients if kind == "ig" else _by_relie
    parts, quality = [], {}
    for task, samples in answers.items():
        values, quality[task] = maker(crosscoder, models, site, samples, config)
        parts.append(np.asarray(values, dtype=np.float32))
    made = SampleValues(tuple(parts)) if kind == "ig" else SampleValues(tuple(parts), weighted_effect)
    return Attributed(made, quality)


def _by_gradients(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[ReadSample],
    config: SelectConfig,
) -> tuple[ndarray, dict[str, Any]]:
    found = integrated_gradients(
        crosscoder, models, site, samples, base=config.base, tuned=config.tuned,
        readout=Readout(config.readout, config.near), steps=config.steps, batch_size=config.batch_size,
    )  # fmt: skip
    ends = {"metric": float(found.metric.mean()), "without": float(found.without.mean())}
    return found.effect[None], {"n": len(samples), **ends, "completeness_gap": found.completeness_gap}


def _by_relie(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[ReadSample],
    config: SelectConfig,
) -> tuple[ndarray, dict[str, Any]]:
    pair = (config.base, config.tuned)
    rows: dict[str, list[Tensor]] = {name: [] for name in pair}
    totals = torch.zeros(3, dtype=torch.float64)
    for part in sample_effects(
        crosscoder, models, site, samples, of=pair, steps=config.steps, batch_size=config.batch_size
    ):
        rows[part.model].append(part.features.cpu())
        if part.model == config.tuned:
            totals += part.totals
    effect = np.stack([torch.cat(rows[name]).numpy() for name in pair])
    of_error, clean, emptied = (totals / len(samples)).tolist()
    change = emptied - clean
    missed = abs(float(effect[1].sum(axis=1).mean()) + of_error - change)
    gap = missed / abs(change) if change else float("nan")
    return effect, {"n": len(samples), "metric": clean, "without": emptied, "completeness_gap": gap}


def weighted_effect(means: Float[ndarray, "part draw d_sae"]) -> Float[ndarray, "draw d_sae"]:
    """max(0, −IE_tuned) · RelIE of tuned against base, from the mean effects ``(base, tuned)``; 0 where both are 0.

    Example:
        >>> weighted_effect(np.array([[[0.0, -1.0, 0.0, 0.0]], [[-2.0, -3.0, 5.0, 0.0]]]))
        array([[2.  , 2.25, 0.  , 0.  ]])
    """
    base, tuned = (np.asarray(part, dtype=np.float64) for part in means)
    share = relative_effects(np.stack([base.ravel(), tuned.ravel()], axis=1))[:, 1].reshape(tuned.shape)
    return np.maximum(-tuned, 0.0) * np.nan_to_num(share)
