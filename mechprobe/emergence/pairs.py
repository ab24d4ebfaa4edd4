"""Pairwise dictionaries of base and one checkpoint, as in arXiv 2604.25011, whose features are matched by decoder."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.dictionaries import Job
from mechprobe.emergence.overlap import top_sets
from mechprobe.emergence.result import PairCourse, PairOverlap
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.features.validation.matching import match_features, matched_overlap
from sae_training import Crosscoder

Trained = tuple[Job, Crosscoder, FeatureTable]


def pair_course(
    arm: str, seed: int, trained: Sequence[Trained], fve: Sequence[Mapping[str, float]], config: EmergenceConfig
) -> PairCourse:
    """One arm in the pairwise dictionaries of one repetition.

    Args:
        arm: Name of the arm.
        seed: Seed of the dictionaries over all checkpoints in the same repetition.
        trained: The dictionaries in order of training; the second dictionary of the last checkpoint comes last.
        fve: Model → FVE, for every dictionary but the second one of the last checkpoint.
        config: Sizes and thresholds.
    """
    decoders = [_decoder(crosscoder) for _, crosscoder, _ in trained]
    alive = [~table.dead for *_, table in trained]
    sets = []
    for job, _, table in trained:
        share = table.frame[[f"nrn_{job.models[1]}"]].to_numpy(dtype=np.float64)
        sets.append(top_sets(share, ~table.dead, config.top)[0])
    size = min(config.top, *(len(items) for items in sets))
    sets = [items[:size] for items in sets]

    def compared(first: int, second: int) -> tuple[float, float, float]:
        """Overlap of the top sets, and the share of each dictionary's live features that the other contains."""
        found = match_features(
            decoders[first], decoders[second], min_cosine=config.min_cosine, alive=(alive[first], alive[second])
        )
        n_found = int(found.found.sum())
        forth, back = (n_found / max(1, int(alive[side].sum())) for side in (first, second))
        return matched_overlap(sets[first], sets[second], found, max(1, size)), forth, back

    n = len(trained) - 1
    overlaps, found_share = np.eye(n), np.eye(n)
    for row in range(n):
        for column in range(row + 1, n):
            overlap, forth, back = compared(row, column)
            overlaps[row, column] = overlaps[column, row] = overlap
            found_share[row, column], found_share[column, row] = forth, back
    overlap, forth, _ = compared(n - 1, n)
    return PairCourse(
        name=arm,
        seed=seed,
        checkpoints=tuple(job.models[1] for job, *_ in trained[:n]),
        overlap=tuple(map(tuple, overlaps.tolist())),
        found_share=tuple(map(tuple, found_share.tolist())),
        ceiling=PairOverlap(overlap=overlap, found_share=forth),
        fve=tuple(min(values.values()) for values in fve),
        top=size,
        min_cosine=config.min_cosine,
    )


def _decoder(crosscoder: Crosscoder) -> Float[ndarray, "d_sae width"]:
    """Decoders of base and checkpoint, concatenated, in the units in which the dictionary was trained."""
    return crosscoder.decoder.detach().double().cpu().numpy()
