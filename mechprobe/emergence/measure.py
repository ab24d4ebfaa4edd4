"""Measures every arm in the trained dictionaries: feature tables, curves, overlaps, pairwise dictionaries and RelIE."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.emergence.arms import Arm
from mechprobe.emergence.causal import causal_course, measure_effects
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.curves import Curves, measure_curves
from mechprobe.emergence.dictionaries import CACHE, Job, job_quality, pair_jobs
from mechprobe.emergence.overlap import chance_overlap, churn, jaccard_matrix, overlap_matrix, top_sets
from mechprobe.emergence.pairs import pair_course
from mechprobe.emergence.result import ArmCourse, CausalCourse, PairCourse
from mechprobe.emergence.table import arm_numbers, feature_frame, with_relie
from mechprobe.emergence.trajectories import KINDS
from mechprobe.errors import StoreError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.feature_table import FeatureTable, feature_table
from mechprobe.models.family import ModelFamily
from mechprobe.selection.rankings.relie import IndirectEffects
from mechprobe.selection.rankings.relie_intervals import group_draws
from sae_training import Crosscoder


class Measurement:
    """The trained dictionaries over an arm's checkpoints, with the tables and effects that are measured once each.

    Attributes:
        config: Settings.
        arms: The arms.
        family: Base and all checkpoints.
        work: Folder of the store and the dictionaries.
        site: Site of the dictionaries.
        dictionaries: Job → trained dictionary.
    """

    def __init__(
        self,
        config: EmergenceConfig,
        arms: Sequence[Arm],
        family: ModelFamily,
        work: Path,
        site: str,
        dictionaries: Mapping[Job, Crosscoder],
    ) -> None:
        self.config, self.arms, self.family, self.work, self.site = config, arms, family, work, site
        self.dictionaries = dictionaries
        self._tables: dict[Job, FeatureTable] = {}
        self._effects: dict[Job, IndirectEffects] = {}

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

    def causal(self, arm: Arm, job: Job, frame: pd.DataFrame) -> tuple[CausalCourse, pd.DataFrame]:
        """RelIE of one arm in one dictionary, and the arm's table with the columns of RelIE. Both use one bootstrap."""
        effects = self.effects(job).only((self.config.base, *arm.checkpoints))
        weights = group_draws(effects.n_groups, self.config.draws, self.config.seed)
        return causal_course(arm, frame, effects, weights), with_relie(frame, effects, weights)

    def course(self, arm: Arm, job: Job, group: int) -> tuple[ArmCourse, Curves, pd.DataFrame]:
        """One arm in one dictionary, with its curves and its feature table.

        Args:
            arm: The arm.
            job: The dictionary.
            group: Number of the dictionary, part of the bootstrap's seed. Arms of one dictionary draw the same features.

        Raises:
            StoreError: No feature of the dictionary fires.
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
            name: tuple(self.pair_course(name, jobs, self.config.seed + number) for number, jobs in enumerate(repeats))
            for name, repeats in pair_jobs(self.arms, self.config).items()
        }

    def pair_course(self, arm: str, jobs: Sequence[Job], seed: int) -> PairCourse:
        """One arm in the pairwise dictionaries of one repetition."""
        found = [(job, self.dictionaries[job], self.table(job)) for job in jobs]
        fve = [job_quality(job, self.work).fve for job in jobs[:-1]]
        return pair_course(arm, seed, found, fve, self.config)
