"""Rankings by attribution: how much each feature contributes to the log-probability of the right answer.

The metric is the mean log-probability per token of a right answer, teacher-forced after the prompt
(`mechprobe.selection.gained.right_answers`). Both rankings are means over the samples of G_t.

* ``ig``: integrated gradients, see `mechprobe.selection.rankings.ig`.
* ``relie``: −IE_k of the tuned model, if positive, times RelIE_k of tuned against base (arXiv 2509.05291;
  `mechprobe.selection.rankings.relie`). The share alone would rank features without effect highest. The product and the
  sign are specific to mechprobe: only a feature whose removal lowers the log-probability counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.models.family import ModelFamily
from mechprobe.models.one_by_one import OneByOne
from mechprobe.selection.config import TOGETHER, Attribution, SelectConfig
from mechprobe.selection.rankings.ig import integrated_gradients
from mechprobe.selection.rankings.indirect_effects import sample_effects
from mechprobe.selection.rankings.relie import relative_effects
from mechprobe.selection.result import AttributionPath
from mechprobe.selection.stability import SampleValues
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class Attributed:
    """The values of a ranking by attribution, and for every task the metric at both ends of the path."""

    samples: SampleValues
    paths: dict[str, AttributionPath]


def attribute(
    kind: Attribution,
    crosscoder: Crosscoder,
    family: ModelFamily,
    answers: Mapping[str, Sequence[TokenizedSample]],
    *,
    site: Site,
    config: SelectConfig,
) -> Attributed:
    """Attribute the log-probability of the right answers ``answers[task]`` to the features; ``site`` is the crosscoder's.

    Raises:
        SelectionError: A task has no sample.
    """
    models = OneByOne(family, crosscoder.model_names)
    measure = _by_gradients if kind == "ig" else _by_relie
    parts: list[Float[ndarray, "part _sample d_sae"]] = []
    paths: dict[str, AttributionPath] = {}
    for task, samples in answers.items():
        values, paths[task] = measure((crosscoder, models, site, samples), config)
        parts.append(np.asarray(values, dtype=np.float32))
    models.release()
    made = SampleValues(tuple(parts)) if kind == "ig" else SampleValues(tuple(parts), weighted_effect)
    return Attributed(made, paths)


_Given = tuple[Crosscoder, Mapping[str, nn.Module], Site, Sequence[TokenizedSample]]


def _by_gradients(given: _Given, config: SelectConfig) -> tuple[Float[ndarray, "1 sample d_sae"], AttributionPath]:
    readout = Readout(config.readout, config.near)
    found = integrated_gradients(
        *given,
        base=config.base,
        tuned=config.tuned,
        readout=readout,
        steps=config.steps,
        batch_size=config.batch_size,
        together=TOGETHER,
    )
    clean, without = float(found.metric.mean()), float(found.without.mean())
    path = AttributionPath(n=len(found.metric), metric=clean, without=without, completeness_gap=found.completeness_gap)
    return found.effect[None], path


def _by_relie(given: _Given, config: SelectConfig) -> tuple[Float[ndarray, "2 sample d_sae"], AttributionPath]:
    pair, n = (config.base, config.tuned), len(given[-1])
    rows: dict[str, list[Tensor]] = {name: [] for name in pair}
    totals = torch.zeros(3, dtype=torch.float64)
    effects = sample_effects(*given, of=pair, steps=config.steps, batch_size=config.batch_size, together=TOGETHER)
    for part in effects:
        rows[part.model].append(part.features.cpu())
        if part.model == config.tuned:
            totals += part.totals
    effect = np.stack([torch.cat(rows[name]).numpy() for name in pair])
    of_error, clean, emptied = (totals / n).tolist()
    change = emptied - clean
    missed = abs(float(effect[1].sum(axis=1).mean()) + of_error - change)
    gap = missed / abs(change) if change else float("nan")
    return effect, AttributionPath(n=n, metric=clean, without=emptied, completeness_gap=gap)


def weighted_effect(means: Float[ndarray, "part draw d_sae"]) -> Float[ndarray, "draw d_sae"]:
    """max(0, −IE_tuned) · RelIE of tuned against base, from the mean effects ``(base, tuned)``; 0 if both are 0.

    Example:
        >>> weighted_effect(np.array([[[0.0, -1.0, 0.0, 0.0]], [[-2.0, -3.0, 5.0, 0.0]]]))
        array([[2.  , 2.25, 0.  , 0.  ]])
    """
    base, tuned = (np.asarray(part, dtype=np.float64) for part in means)
    share = relative_effects(np.stack([base.ravel(), tuned.ravel()], axis=1))[:, 1].reshape(tuned.shape)
    return np.maximum(-tuned, 0.0) * np.nan_to_num(share)
