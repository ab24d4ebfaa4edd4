"""Measures every arm in the trained dictionaries: feature tables, curves, overlaps, pairwise dictionaries and RelIE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.emergence.arms import Arm
from mechprobe.emergence.causal import causal_course, measure_effects
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.curves import Curves, measure_curves
from mechprobe.emergence.dictionaries import CACHE, Job, job_quality, pair_jobs
from mechprobe.emergence.overlap import chance_overlap, churn, jaccard_matrix, overlap_matrix, top_sets
from mechprobe.emergence.result import ArmCourse, CausalCourse, PairCourse, PairOverlap
from mechprobe.emergence.table import arm_numbers, feature_frame, with_relie
from mechprobe.emergence.trajectories import KINDS
from mechprobe.errors import StoreError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.feature_table import FeatureTable, feature_table
from mechprobe.features.validation.matching import match_features, matched_overlap
from mechprobe.models.family import ModelFamily
from mechprobe.selection.rankings.relie import IndirectEffects, group_draws
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Measurement:
    """The trained dictionaries in ``work``, with the tables and effects that are measured once each."""

    config: EmergenceConfig
    arms: Sequence[Arm]
    family: ModelFamily
    work: Path
    site: str
    dictionaries: Mapping[Job, Crosscoder]
    _tables: dict[Job, FeatureTable] = field(default_factory=dict, init=False)
    _effects: dict[Job, IndirectEffects] = field(default_factory=dict, init=False)

    def table(self, job: Job) -> FeatureTable:
        """Norms, densities and latent scaling of one dictionary."""
        if job not in self._tables:
            settings = FeaturesConfig(
                site=self.site,
                base=self.config.base,
                readout="joint",
                max_rows=self.config.max_rows,
                bootstrap_draws=0,  # intervals of the class counts, which emergence does not use
            )
            store = ActivationStore.open(self.work / CACHE, models=job.models)
            self._tables[job] = feature_table(self.dictionaries[job], store, settings)
        return self._tables[job]

    def effects(self, job: Job) -> IndirectEffects:
        """Indirect effects in all models of one dictionary."""
        if job not in self._effects:
            self._effects[job] = measure_effects(
                self.dictionaries[job], self.family, self.work / CACHE, self.site, self.config
            )
        return self._effects[job]

    def causal(self, arm: Arm, job: Job, frame: "pd.DataFrame") -> "tuple[CausalCourse, pd.DataFrame]":
        """RelIE of one arm in one dictionary, and the arm's table with the columns of RelIE. Both use one bootstrap."""
        effects = self.effects(job).only((self.config.base, *arm.checkpoints))
        weights = group_draws(effects.n_groups, self.config.draws, self.config.seed)
        return causal_course(arm, frame, effects, weights), with_relie(frame, effects, weights)

    def course(self, arm: Arm, job: Job, group: int) -> "tuple[ArmCourse, Curves, pd.DataFrame]":
        """One arm in one dictionary, with its curves and its feature table; `StoreError` if no feature fires.

        ``group``, the number of the dictionary, is part of the bootstrap's seed: arms of one dictionary draw the same
        features.
        """
        config, table = self.config, self.table(job)
        if table.dead.all():
            raise StoreError(f"No feature of {self.work / job.name} ever fires; train it on more tokens, or raise k.")
        numbers = arm_numbers(self.dictionaries[job], table, arm, config)
        curves = measure_curves(numbers, draws=config.draws, seed=(config.seed, group))
        alive = np.flatnonzero(~table.dead)
        nrn = np.full((len(table), len(arm.checkpoints)), np.nan)
        nrn[alive] = numbers.nrn()
        sets = top_sets(nrn, ~table.dead, config.top)
        size = min(config.top, len(alive))
        frame = feature_frame(table, arm, config)
        kind = frame["kind"].tolist()
        course = ArmCourse(
            name=arm.name,
            seed=job.seed,
            base=config.base,
            checkpoints=arm.checkpoints,
            labels=tuple(arm.label(name) for name in arm.checkpoints),
            progress=arm.progress,
            spaced_by=arm.spaced_by,
            steps=arm.steps,
            n_alive=len(alive),
            kinds={name: kind.count(name) for name in KINDS},
            curves=curves.intervals(),
            overlap=overlap_matrix(sets, size).tolist(),
            jaccard=jaccard_matrix(sets).tolist(),
            churn=tuple(churn(sets, size)),
            top=size,
            chance=chance_overlap(size, len(alive)),
        )
        return course, curves, frame

    def pair_courses(self) -> dict[str, tuple[PairCourse, ...]]:
        """Every arm in dictionaries of base and one checkpoint, once for each seed."""
        return {
            name: tuple(self._pair_course(name, jobs, self.config.seed + number) for number, jobs in enumerate(repeats))
            for name, repeats in pair_jobs(self.arms, self.config).items()
        }

    def _pair_course(self, arm: str, jobs: Sequence[Job], seed: int) -> PairCourse:
        """One arm in the pairwise dictionaries of one repetition (arXiv 2604.25011); features are matched by decoder.

        The second dictionary of the last checkpoint comes last in ``jobs``.
        """
        config, tables = self.config, [self.table(job) for job in jobs]
        decoders = [self.dictionaries[job].decoder.detach().double().cpu().numpy() for job in jobs]
        alive = [~table.dead for table in tables]
        shares = [
            table.frame[[f"nrn_{job.models[1]}"]].to_numpy(np.float64) for job, table in zip(jobs, tables, strict=True)
        ]
        sets = [top_sets(share, live, config.top)[0] for share, live in zip(shares, alive, strict=True)]
        size = min(config.top, *map(len, sets))

        def compared(first: int, second: int) -> tuple[float, float, float]:
            """Overlap of the top sets, and the share of each dictionary's live features that the other contains."""
            found = match_features(
                decoders[first], decoders[second], min_cosine=config.min_cosine, alive=(alive[first], alive[second])
            )
            n_found = int(found.found.sum())
            forth, back = (n_found / max(1, int(alive[side].sum())) for side in (first, second))
            return matched_overlap(sets[first][:size], sets[second][:size], found, max(1, size)), forth, back

        n = len(jobs) - 1
        overlaps, found_share = np.eye(n), np.eye(n)
        for row, column in combinations(range(n), 2):
            overlap, forth, back = compared(row, column)
            overlaps[row, column] = overlaps[column, row] = overlap
            found_share[row, column], found_share[column, row] = forth, back
        overlap, forth, _ = compared(n - 1, n)
        return PairCourse(
            name=arm,
            seed=seed,
            checkpoints=tuple(job.models[1] for job in jobs[:n]),
            overlap=tuple(map(tuple, overlaps.tolist())),
            found_share=tuple(map(tuple, found_share.tolist())),
            ceiling=PairOverlap(overlap=overlap, found_share=forth),
            fve=tuple(min(job_quality(job, self.work).fve.values()) for job in jobs[:n]),
            top=size,
            min_cosine=config.min_cosine,
        )
