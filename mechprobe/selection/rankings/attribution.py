"""Rankings by attribution: how much each feature contributes to the log-probability of the right answer.

The metric is the mean log-probability per token of a right answer, teacher-forced after the prompt
(`mechprobe.selection.sequences.right_answers`). Both rankings are means over the samples of G_t.

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
from mechprobe.selection.config import Attribution, SelectConfig
from mechprobe.selection.rankings.ig import integrated_gradients
from mechprobe.selection.rankings.indirect_effects import sample_effects
from mechprobe.selection.rankings.relie import relative_effects
from mechprobe.selection.result import AttributionPath
from mechprobe.selection.stability import SampleValues
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class Attributed:
    """A ranking by attribution.

    Attributes:
        samples: Its values sample by sample.
        paths: Task → the metric at both ends of the path.
    """

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
    """Attribute the log-probability of the right answers of every task to the features.

    Args:
        kind: ``ig`` or ``relie``.
        crosscoder: The dictionary.
        family: Its models.
        answers: Task → prompts with right answers.
        site: Where the crosscoder was trained.
        config: The two models, read-out, steps and batch size.

    Raises:
        SelectionError: A task has no sample.
    """
    models = {name: family[name].hf for name in crosscoder.model_names}
    measure = _by_gradients if kind == "ig" else _by_relie
    parts: list[Float[ndarray, "part _sample d_sae"]] = []
    paths: dict[str, AttributionPath] = {}
    for task, samples in answers.items():
        values, paths[task] = measure(crosscoder, models, site, samples, config)
        parts.append(np.asarray(values, dtype=np.float32))
    made = SampleValues(tuple(parts)) if kind == "ig" else SampleValues(tuple(parts), weighted_effect)
    return Attributed(made, paths)


def _by_gradients(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[TokenizedSample],
    config: SelectConfig,
) -> tuple[Float[ndarray, "1 sample d_sae"], AttributionPath]:
    found = integrated_gradients(
        crosscoder, models, site, samples, base=config.base, tuned=config.tuned,
        readout=Readout(config.readout, config.near), steps=config.steps, batch_size=config.batch_size,
    )  # fmt: skip
    path = AttributionPath(
        n=len(samples),
        metric=float(found.metric.mean()),
        without=float(found.without.mean()),
        completeness_gap=found.completeness_gap,
    )
    return found.effect[None], path


def _by_relie(
    crosscoder: Crosscoder,
    models: Mapping[str, nn.Module],
    site: Site,
    samples: Sequence[TokenizedSample],
    config: SelectConfig,
) -> tuple[Float[ndarray, "2 sample d_sae"], AttributionPath]:
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
    return effect, AttributionPath(n=len(samples), metric=clean, without=emptied, completeness_gap=gap)


def weighted_effect(means: Float[ndarray, "part draw d_sae"]) -> Float[ndarray, "draw d_sae"]:
    """max(0, −IE_tuned) · RelIE of tuned against base, from the mean effects ``(base, tuned)``; 0 if both are 0.

    Example:
        >>> weighted_effect(np.array([[[0.0, -1.0, 0.0, 0.0]], [[-2.0, -3.0, 5.0, 0.0]]]))
        array([[2.  , 2.25, 0.  , 0.  ]])
    """
    base, tuned = (np.asarray(part, dtype=np.float64) for part in means)
    share = relative_effects(np.stack([base.ravel(), tuned.ravel()], axis=1))[:, 1].reshape(tuned.shape)
    return np.maximum(-tuned, 0.0) * np.nan_to_num(share)
