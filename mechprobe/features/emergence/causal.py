"""RelIE over the checkpoints of an arm: does the causal strength of features move as their decoder norms do?"""

from pathlib import Path

import numpy as np
import pandas as pd

from mechprobe.activations import ActivationStore
from mechprobe.errors import ConfigError
from mechprobe.features.emergence.arms import Arm
from mechprobe.features.emergence.config import EmergenceConfig
from mechprobe.features.emergence.result import CausalCourse
from mechprobe.features.relie import IndirectEffects, indirect_effects
from mechprobe.features.splicing import ReadSample
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site
from sae_training import Crosscoder


def measure_effects(
    crosscoder: Crosscoder, family: ModelFamily, cache: Path, site: str, config: EmergenceConfig
) -> IndirectEffects:
    """Indirect effects on the held-out samples of a store, for every model of a dictionary."""
    store = ActivationStore.open(cache, models=crosscoder.model_names)
    samples = held_out_responses(store, config.relie_source, config.relie_samples)
    models = {name: family[name].hf for name in crosscoder.model_names}
    return indirect_effects(crosscoder, models, Site.parse(site), samples, steps=config.relie_steps)


def held_out_responses(store: ActivationStore, source: str | None, n: int) -> list[ReadSample]:
    """The first ``n`` held-out samples of a source, with a response where any has one.

    Raises:
        ConfigError: The store has none of that source.
    """
    sequences = [store.sequence(sample) for sample in store.held_out_samples()]
    chosen = [sequence for sequence in sequences if source is None or sequence.source == source]
    answered = [sequence for sequence in chosen if any(sequence.response)]
    if not chosen:
        sources = sorted({str(sequence.source) for sequence in sequences})
        raise ConfigError(f"relie_source '{source}' wrote no held-out response; the sources are {', '.join(sources)}.")
    return [ReadSample(sequence.ids, sequence.kept, sequence.response) for sequence in (answered or chosen)[:n]]


def causal_course(arm: Arm, base: str, frame: pd.DataFrame, effects: IndirectEffects) -> CausalCourse:
    """The summary of one arm; ``frame`` is its feature table."""
    names = (base, *arm.checkpoints)
    chosen = effects.only(names)
    size = np.abs(chosen.effect)
    departure, correlation = [], []
    for column, name in enumerate(names[1:], start=1):
        pair = size[:, [0, column]]
        total = pair.sum()
        departure.append(float(np.abs(pair[:, 1] - pair[:, 0]).sum() / total) if total > 0 else float("nan"))
        correlation.append(_rank_correlation(frame[f"nrn_{name}"].to_numpy(), pair))
    return CausalCourse(
        name=arm.name,
        models=names,
        n_samples=chosen.n_samples,
        metric=chosen.metric.tolist(),
        departure=departure,
        rank_correlation=correlation,
        completeness_gap=chosen.completeness_gap.tolist(),
    )


def _rank_correlation(nrn: np.ndarray, pair: np.ndarray) -> float:
    """Spearman's of NRN and pairwise RelIE over the features with the upper half of effects; NaN for fewer than 3."""
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
