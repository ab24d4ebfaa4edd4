"""``mechprobe emergence``: a store of base and all checkpoints, dictionaries over it, and the course of every feature."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.cache.config import CacheConfig
from mechprobe.data.sources import PromptInput
from mechprobe.dictionary.config import TrainSaeConfig
from mechprobe.emergence.arms import Arm, find_arms, with_recorded
from mechprobe.emergence.claim import judge
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.curves import Curves
from mechprobe.emergence.dictionaries import CACHE, all_jobs, job_quality, joint_jobs, make_store, train_job
from mechprobe.emergence.measure import Measurement
from mechprobe.emergence.result import RESULT_FILE, ArmCourse, CausalCourse, Emergence, table_file
from mechprobe.errors import ConfigError
from mechprobe.features.table.feature_table import require_table_packages
from mechprobe.files import write_bytes
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity
from mechprobe.stage_folder import Stage

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

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
        family: Base and the checkpoints, named ``rl@step_000040``. A model named like an arm is its last checkpoint. Models
            outside all arms are ignored.
        prompts: What all models read: a JSON-lines file, or prompts.
        out: Stage folder for ``emergence.json``, ``features_<arm>_seed<n>.parquet`` and ``manifest.json``.
        work: Folder of the store and the dictionaries, each a stage folder that is resumed; ``checkpoints`` beside ``out``
            if None.
        config: Settings; the defaults if None.
        cache: Settings of the store.
        training: Settings of the dictionaries.
        force: Make the result again, and every store or dictionary that was made with other settings.

    Returns:
        The result; a finished stage is read back.

    Raises:
        ConfigError: No arm has two checkpoints, or a setting does not fit.
        ArtifactError: A folder holds other work.
        DependencyError: pandas or pyarrow is not installed.
    """
    require_table_packages()
    config, out = config or EmergenceConfig(), Path(out)
    work = out.parent / "checkpoints" if work is None else Path(work)
    cache, training = cache or CacheConfig(), training or TrainSaeConfig()
    config = config.replace(final_steps=recorded_final_steps(family, config))
    arms = find_arms(family.names, config)
    _warn_of_spacing(arms)
    family = family.subset(*dict.fromkeys([config.base, *(name for arm in arms for name in arm.checkpoints)]))
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
            _write(stage, Measurement(config, arms, family, work, site, dictionaries))
    return Emergence.load(out)


def recorded_final_steps(family: ModelFamily, config: EmergenceConfig) -> dict[str, int]:
    """``final_steps``, with the steps that the folders of further checkpoints record."""
    known = with_recorded(config.final_steps, ((model.name, model.path) for model in family), config.base)
    used = {name for arm in find_arms(family.names, config.replace(final_steps=known)) for name in arm.checkpoints}
    return {name: step for name, step in known.items() if name in used or name in config.final_steps}


def _warn_of_spacing(arms: Sequence[Arm]) -> None:
    even = [arm.name for arm in arms if arm.spaced_by == "checkpoints"]
    if even:
        logger.warning(
            "The optimizer steps of %s are unknown: checkpoints are drawn evenly spaced, and nothing is dated. Set emergence.final_steps.",
            ", ".join(even),
        )


def _write(stage: Stage, measured: Measurement) -> None:
    """Measure every arm, write the result and its tables, and finish the stage."""
    config = measured.config
    courses: dict[str, tuple[ArmCourse, ...]] = {}
    curves: dict[str, tuple[Curves, ...]] = {}
    tables: dict[str, pd.DataFrame] = {}
    causal: dict[str, CausalCourse] = {}
    joint = joint_jobs(measured.arms, config)
    groups = list(dict.fromkeys(job for jobs in joint.values() for job in jobs))
    for arm in measured.arms:
        jobs = joint[arm.name]
        with activity(f"courses of {arm.name}"):
            found = [measured.course(arm, job, groups.index(job)) for job in jobs]
        courses[arm.name], curves[arm.name], frames = zip(*found, strict=True)
        files = [table_file(arm.name, job.seed) for job in jobs]
        tables |= dict(zip(files, frames, strict=True))
        if config.relie:
            with activity(f"RelIE of {arm.name}"):
                causal[arm.name], tables[files[0]] = measured.causal(arm, jobs[0], frames[0])
    with activity("pairwise dictionaries"):
        pairs = measured.pair_courses()
    result = Emergence(
        folder=stage.folder,
        layout=config.layout,
        arms=courses,
        pairs=pairs,
        causal=causal,
        quality={job.name: job_quality(job, measured.work) for job in measured.dictionaries},
        claim=judge(curves, CLAIMED_ARMS),
    )
    for name, frame in tables.items():
        write_bytes(stage.folder / name, frame.to_parquet(index=False))
    result.save(stage.folder / RESULT_FILE)
    stage.finish(
        outputs=[RESULT_FILE, *tables],
        counts={"dictionaries": len(measured.dictionaries), "features": {k: v[0].n_alive for k, v in courses.items()}},
        results={"claim": None if result.claim is None else list(result.claim.sentences)},
        seed=config.seed,
    )
