"""``mechprobe emergence``: checkpoints recorded, dictionaries over them, and the course of every feature."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.data.sources import PromptInput
from mechprobe.dictionary.config import TrainSaeConfig
from mechprobe.emergence.arms import Arm, find_arms
from mechprobe.emergence.causal import causal_course, measure_effects
from mechprobe.emergence.claim import judge
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.curves import ArmNumbers, Curves, measure_curves
from mechprobe.emergence.dictionaries import (
    CACHE,
    Job,
    all_jobs,
    job_quality,
    joint_jobs,
    make_store,
    pair_jobs,
    train_job,
)
from mechprobe.emergence.overlap import chance_overlap, churn, jaccard_matrix, overlap_matrix, top_sets
from mechprobe.emergence.pairs import pair_course
from mechprobe.emergence.result import ArmCourse, CausalCourse, Emergence, PairCourse, table_file
from mechprobe.emergence.trajectories import KINDS, shares, trajectories
from mechprobe.errors import ConfigError, StoreError
from mechprobe.features.config import ClassThresholds, FeaturesConfig
from mechprobe.features.table.feature_table import FeatureTable, feature_table
from mechprobe.models.family import ModelFamily
from mechprobe.selection.rankings.relie import IndirectEffects
from mechprobe.selection.rankings.relie_intervals import group_draws, relie_intervals
from mechprobe.stage_folder import Stage
from sae_training import Crosscoder

CLAIMED_ARMS = ("sft", "rl")


def emergence(
    family: ModelFamily,
    prompts: PromptInput,
    *,
    out: Path | str = "emergence",
    work: Path | str | None = None,
    config: EmergenceConfig | None = None,
    cache: CacheConfig | None = None,
    training: TrainSaeConfig | None = None,
    force: bool = False,
) -> Emergence:
    """Follow every feature from base over the checkpoints of one or more arms.

    Args:
        family: Base and the checkpoints, named ``rl@step_000040``; a model named like an arm is its last checkpoint.
            Models of no arm are left out.
        prompts: What all models read: a JSON-lines file, or prompts.
        out: Stage folder: ``emergence.json``, ``features_<arm>_seed<n>.parquet``, ``manifest.json``.
        work: Where the store and the dictionaries lie, each a stage folder of its own that is kept and resumed;
            ``checkpoints`` beside ``out`` when None.
        config: Settings; the defaults when None.
        cache: Settings of the store.
        training: Settings of the dictionaries.
        force: Make the result again, and whatever of store and dictionaries was made with other settings.

    Returns:
        The result, read back where the stage was already done.

    Raises:
        ConfigError: No arm has two checkpoints, or a setting does not fit.
        ArtifactError: A folder holds other work.
    """
    config, out = config or EmergenceConfig(), Path(out)
    work = out.parent / "checkpoints" if work is None else Path(work)
    cache, training = cache or CacheConfig(), training or TrainSaeConfig()
    arms = find_arms(family.names, config)
    models = list(dict.fromkeys([config.base, *(name for arm in arms for name in arm.checkpoints)]))
    family = family.subset(*models)
    if len(set(family.d_model.values())) > 1:
        raise ConfigError(f"The checkpoints have different widths ({family.d_model}); give those of one base model.")
    store = make_store(family, prompts, work, cache, force=force)
    site = str(store.resolve_site(config.site))
    jobs = all_jobs(arms, config)
    device = next(iter(family)).device
    dictionaries = {job: train_job(job, work, training, site=site, device=device, force=force) for job in jobs}
    settings = {**config.model_dump(mode="json"), "site": site, "models": list(family.names)}
    inputs: dict[str, Path | str] = {"cache": work / CACHE, **{job.name: work / job.name for job in jobs}}
    with Stage.open(
        out, name="emergence", config=settings, inputs=inputs, models=family.fingerprints, force=force
    ) as stage:
        if not stage.done:
            _Reading(config, arms, family, work, site, dictionaries).write(stage)
    return Emergence.load(out)


class _Reading:
    """Everything the result is read from."""

    def __init__(
        self,
        config: EmergenceConfig,
        arms: Sequence[Arm],
        family: ModelFamily,
        work: Path,
        site: str,
        dictionaries: dict[Job, Crosscoder],
    ) -> None:
        self.config, self.arms, self.family, self.work, self.site = config, arms, family, work, site
        self.dictionaries = dictionaries
        self._tables: dict[Job, FeatureTable] = {}
        self._effects: dict[Job, IndirectEffects] = {}

    def write(self, stage: Stage) -> None:
        """Compute the result and finish the stage."""
        courses: dict[str, tuple[ArmCourse, ...]] = {}
        curves: dict[str, list[Curves]] = {}
        frames: dict[str, pd.DataFrame] = {}
        causal: dict[str, CausalCourse] = {}
        joint = joint_jobs(self.arms, self.config)
        groups = list(dict.fromkeys(job for jobs in joint.values() for job in jobs))
        for arm in self.arms:
            found = [self.course(arm, job, groups.index(job)) for job in joint[arm.name]]
            courses[arm.name] = tuple(course for course, _, _ in found)
            curves[arm.name] = [curve for _, curve, _ in found]
            made = [frame for _, _, frame in found]
            if self.config.relie:
                causal[arm.name], made[0] = self.causal(arm, joint[arm.name][0], made[0])
            frames |= {table_file(arm.name, job.seed): frame for job, frame in zip(joint[arm.name], made, strict=True)}
        claim = judge(curves, CLAIMED_ARMS)
        quality = {job.name: job_quality(job, self.work) for job in self.dictionaries}
        result = Emergence(stage.folder, self.config.layout, courses, self.pair_courses(), causal, quality, claim)
        outputs = result.save(frames)
        stage.finish(
            outputs=outputs,
            counts={"dictionaries": len(self.dictionaries), "features": {k: v[0].n_alive for k, v in courses.items()}},
            results={"claim": None if claim is None else list(claim.sentences)},
            seed=self.config.seed,
        )

    def table(self, job: Job) -> FeatureTable:
        """Norms, densities and latent scaling of one dictionary."""
        if job not in self._tables:
            settings = FeaturesConfig(
                site=self.site, base=self.config.base, readout="joint", max_rows=self.config.max_rows
            )
            store = ActivationStore.open(self.work / CACHE, models=job.models)
            self._tables[job] = feature_table(self.dictionaries[job], store, settings)
        return self._tables[job]

    def effects(self, job: Job) -> IndirectEffects:
        """RelIE of one dictionary, measured once."""
        if job not in self._effects:
            self._effects[job] = measure_effects(
                self.dictionaries[job], self.family, self.work / CACHE, self.site, self.config
            )
        return self._effects[job]

    def causal(self, arm: Arm, job: Job, frame: pd.DataFrame) -> tuple[CausalCourse, pd.DataFrame]:
        """RelIE of one arm in one dictionary, and its table with the columns of RelIE: one bootstrap for both."""
        effects = self.effects(job).only((self.config.base, *arm.checkpoints))
        weights = group_draws(effects.n_groups, self.config.draws, self.config.seed)
        return causal_course(arm, frame, effects, weights), with_relie(frame, effects, weights)

    def course(self, arm: Arm, job: Job, group: int) -> tuple[ArmCourse, Curves, pd.DataFrame]:
        """One arm in one dictionary, with its feature table."""
        config, table = self.config, self.table(job)
        if table.dead.all():
            raise StoreError(f"No feature of {self.work / job.name} ever fires; train it on more tokens, or raise k.")
        numbers = arm_numbers(self.dictionaries[job], table, arm, config)
        curves = measure_curves(numbers, draws=config.draws, seed=(config.seed, group))
        alive = np.flatnonzero(~table.dead)
        share = np.full((len(table), len(arm.checkpoints)), np.nan)
        share[alive] = numbers.nrn()
        sets = top_sets(share, ~table.dead, config.top)
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
            churn=churn(sets, size),
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
        """One arm in the dictionaries of one repetition."""
        found = [(job, self.dictionaries[job], self.table(job)) for job in jobs]
        fve: list[Any] = [job_quality(job, self.work)["fve"] for job in jobs[:-1]]
        return pair_course(arm, seed, found, fve, self.config)


def arm_columns(table: FeatureTable, arm: Arm, base: str) -> Float[ndarray, "d_sae column"]:
    """Decoder norms (L1, own units) of base and the checkpoints of an arm, from norms of all models."""
    return table.frame[[f"norm_l1_{name}" for name in (base, *arm.checkpoints)]].to_numpy(dtype=np.float64)


def arm_numbers(crosscoder: Crosscoder, table: FeatureTable, arm: Arm, config: EmergenceConfig) -> ArmNumbers:
    """The live features of one dictionary, as the curves need them."""
    alive = ~table.dead
    scale = crosscoder.scale.detach().double().cpu().numpy()
    columns = [crosscoder.model_index(name) for name in (config.base, *arm.checkpoints)]
    decoder = crosscoder.W_dec.detach().double().cpu().numpy()[:, columns] * scale[columns, None]
    return ArmNumbers(
        norms=arm_columns(table, arm, config.base)[alive],
        decoder=decoder[alive],
        confirmed=confirmed_absences(table, arm, config)[alive],
        progress=np.array(arm.progress),
        top=config.top,
        specific_nrn=config.thresholds.specific_nrn,
    )


def confirmed_absences(table: FeatureTable, arm: Arm, config: EmergenceConfig) -> Bool[ndarray, "d_sae checkpoint"]:
    """Where latent scaling (arXiv 2504.02922) agrees that base lacks a feature of the checkpoint, or the other way."""
    share = {name: table.frame[f"nrn_{name}"].to_numpy() for name in arm.checkpoints}
    limits, base = table.thresholds, config.base
    columns = []
    for name in arm.checkpoints:
        gained = _absent(table, owner=name, other=base, limits=limits)
        lost = _absent(table, owner=base, other=name, limits=limits)
        columns.append(np.where(share[name] >= 0.5, gained, lost))
    return np.stack(columns, axis=1).astype(bool)


def _absent(table: FeatureTable, *, owner: str, other: str, limits: ClassThresholds) -> Bool[ndarray, " d_sae"]:
    frame = table.frame
    agrees = np.ones(len(frame), dtype=bool)
    for target, most in (("error", limits.nu_error_max), ("reconstruction", limits.nu_reconstruction_max)):
        own = frame[f"beta_{target}_{owner}_{owner}"].to_numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            nu = frame[f"beta_{target}_{owner}_{other}"].to_numpy() / own
            agrees &= (own > 0) & (nu <= most)
    return agrees


def feature_frame(table: FeatureTable, arm: Arm, config: EmergenceConfig) -> pd.DataFrame:
    """One row per feature: its course over an arm; the columns are listed at `Emergence.table`, but for those of RelIE (`with_relie`).

    Args:
        table: Norms of all features.
        arm: The arm.
        config: Thresholds.
    """
    names = (config.base, *arm.checkpoints)
    dead = table.dead
    norms = np.nan_to_num(arm_columns(table, arm, config.base))
    found = trajectories(norms, dead, np.array(arm.progress), config.thresholds)
    confirmed, share = confirmed_absences(table, arm, config), shares(norms)
    columns: dict[str, Any] = {"feature": np.arange(len(table)), "alive": ~dead, **found.columns()}
    for name in ("onset", "peak"):
        columns[name] = [None if column < 0 else names[column] for column in columns[name]]
    for column, name in enumerate(names):
        columns[f"norm_{name}"] = np.where(dead, np.nan, norms[:, column])
        columns[f"share_{name}"] = np.where(dead, np.nan, share[:, column])
        if column:
            columns[f"nrn_{name}"] = table.frame[f"nrn_{name}"].to_numpy()
            columns[f"confirmed_{name}"] = confirmed[:, column - 1]
    return pd.DataFrame(columns)


def with_relie(frame: pd.DataFrame, effects: IndirectEffects, weights: Float[ndarray, "draw group"]) -> pd.DataFrame:
    """`feature_frame` with the columns of RelIE.

    Args:
        frame: One row per feature.
        effects: Indirect effects in base and the checkpoints, in this order.
        weights: The bootstrap's `group_draws`.
    """
    ends, relie = relie_intervals(effects, weights), effects.relie
    columns: dict[str, Any] = {"n_relie": ends.n_groups}
    for column, name in enumerate(effects.models):
        columns[f"ie_{name}"] = effects.effect[:, column]
        columns[f"relie_{name}"] = relie[:, column]
        columns[f"low_relie_{name}"] = ends.low[:, column]
        columns[f"high_relie_{name}"] = ends.high[:, column]
    return frame.assign(**columns)
