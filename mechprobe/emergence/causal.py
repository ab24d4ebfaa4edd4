"""RelIE over the checkpoints of an arm: whether the causal strength of features changes as their decoder norms do."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.emergence.arms import Arm
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.overlap import interval
from mechprobe.emergence.result import CausalCourse
from mechprobe.errors import ConfigError
from mechprobe.models.family import ModelFamily
from mechprobe.models.one_by_one import OneByOne
from mechprobe.selection.rankings.indirect_effects import indirect_effects
from mechprobe.selection.rankings.relie import IndirectEffects, drawn_effects
from mechprobe.types import Site
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd


def measure_effects(
    crosscoder: Crosscoder, family: ModelFamily, cache: Path, site: str, config: EmergenceConfig
) -> IndirectEffects:
    """Indirect effects on the held-out samples of the store in ``cache``, in every model, grouped by prompt.

    Only samples with a response are used, if there are any.

    Raises:
        ConfigError: The store has no held-out sample of ``config.relie_source``.
    """
    store = ActivationStore.open(cache, models=crosscoder.model_names)
    held_out = [store.sequence(sample) for sample in store.held_out_samples()]
    chosen = [sequence for sequence in held_out if config.relie_source in (None, sequence.source)]
    if not chosen:
        sources = ", ".join(sorted({str(sequence.source) for sequence in held_out}))
        raise ConfigError(
            f"emergence.relie_source is '{config.relie_source}', which has no held-out sample; the sources are {sources}."
        )
    answered = [sequence for sequence in chosen if any(sequence.response)]
    sequences = (answered or chosen)[: config.relie_samples]
    samples = [TokenizedSample(sequence.ids, sequence.kept, sequence.response) for sequence in sequences]
    models = OneByOne(family, crosscoder.model_names)
    found = indirect_effects(
        crosscoder,
        models,
        Site.parse(site),
        samples,
        steps=config.relie_steps,
        groups=[sequence.prompt_id for sequence in sequences],
    )
    models.release()
    return found


def causal_course(
    arm: Arm, frame: "pd.DataFrame", effects: IndirectEffects, weights: Float[ndarray, "draw group"]
) -> CausalCourse:
    """RelIE over one arm, from its feature table and the effects in base and the checkpoints, in this order.

    ``weights`` are `mechprobe.selection.rankings.relie.group_draws`, the same as for the table's intervals.
    """
    nrn = np.stack([frame[f"nrn_{name}"].to_numpy(dtype=np.float64) for name in arm.checkpoints], axis=1)
    values = summaries(effects.effect, nrn)
    drawn = np.array([summaries(draw, nrn) for draw in drawn_effects(effects, weights)]).reshape(-1, *values.shape)
    parts = {}
    for row, name in enumerate(("departure", "rank_correlation")):
        cells = [(float(value), drawn[:, row, column]) for column, value in enumerate(values[row])]
        parts[name] = tuple(interval(value, draws, effects.n_groups) for value, draws in cells)
        parts[f"{name}_bias"] = tuple(_mean(draws) - value for value, draws in cells)
    return CausalCourse(
        name=arm.name,
        models=effects.models,
        n_samples=effects.n_samples,
        n_groups=effects.n_groups,
        draws=len(weights),
        metric=tuple(effects.metric.tolist()),
        completeness_gap=tuple(effects.completeness_gap.tolist()),
        **parts,
    )


def summaries(
    effect: Float[ndarray, "d_sae model"], nrn: Float[ndarray, "d_sae checkpoint"]
) -> Float[ndarray, "2 checkpoint"]:
    """``departure`` and ``rank_correlation`` of `CausalCourse` at every checkpoint; base is the first model.

    Neither changes when all effects are scaled, so sums over samples may replace means.
    """
    size = np.abs(effect)
    found = np.empty((2, nrn.shape[1]))
    for column in range(nrn.shape[1]):
        pair = size[:, [0, column + 1]]
        total = pair.sum()
        found[0, column] = np.abs(pair[:, 1] - pair[:, 0]).sum() / total if total > 0 else np.nan
        found[1, column] = _rank_correlation(nrn[:, column], pair)
    return found


def _mean(draws: Float[ndarray, " draw"]) -> float:
    """Mean of the finite draws; NaN if there are none."""
    finite = draws[np.isfinite(draws)]
    return float(finite.mean()) if len(finite) else float("nan")


def _rank_correlation(nrn: Float[ndarray, " d_sae"], pair: Float[ndarray, "d_sae 2"]) -> float:
    """Spearman correlation of NRN and pairwise RelIE over the upper half of effects; NaN for fewer than 3 features."""
    from scipy.stats import spearmanr

    strength = pair.sum(axis=1)
    useful = np.isfinite(nrn) & (strength > 0)
    if useful.sum() < 3:
        return float("nan")
    useful &= strength >= np.median(strength[useful])
    relie = pair[useful, 1] / strength[useful]
    if useful.sum() < 3 or np.ptp(relie) == 0 or np.ptp(nrn[useful]) == 0:
        return float("nan")
    return float(np.asarray(spearmanr(nrn[useful], relie))[0])
