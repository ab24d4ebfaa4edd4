"""What emergence is read from: one store of base and all checkpoints, and the dictionaries trained on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mechprobe.activations import ActivationStore, CacheConfig, TrainSaeConfig, cache_activations, train_crosscoder
from mechprobe.artifacts import read_manifest
from mechprobe.data.sources import PromptInput
from mechprobe.errors import ArtifactError
from mechprobe.features.emergence.arms import Arm
from mechprobe.features.emergence.config import EmergenceConfig
from mechprobe.models.family import ModelFamily
from sae_training import Crosscoder

T = TypeVar("T")

CACHE, PAIRS, TOGETHER = "cache", "pairs", "together"
_PAIR_SEEDS = 1000
"""Seeds of the pairwise dictionaries begin here: each has its own, so that nothing but the decoders aligns them."""


@dataclass(frozen=True)
class Job:
    """One dictionary to train.

    Attributes:
        name: Folder below the work folder.
        models: Base first.
        seed: Of weights and order of rows.
    """

    name: str
    models: tuple[str, ...]
    seed: int


def joint_jobs(arms: Sequence[Arm], config: EmergenceConfig) -> dict[str, list[Job]]:
    """Arm to the dictionaries that show it, one for each seed; under ``together`` the arms share them."""
    seeds = range(config.seed, config.seed + config.seeds)
    if config.layout == "together":
        models = (config.base, *(model for arm in arms for model in arm.checkpoints))
        jobs = [Job(f"{TOGETHER}_seed{seed}", models, seed) for seed in seeds]
        return {arm.name: jobs for arm in arms}
    return {
        arm.name: [Job(f"{arm.name}_seed{seed}", (config.base, *arm.checkpoints), seed) for seed in seeds]
        for arm in arms
    }


def pair_jobs(arms: Sequence[Arm], config: EmergenceConfig) -> dict[str, list[Job]]:
    """Arm to base against each checkpoint alone; the last one once more with another seed, as the ceiling of matching."""
    if not config.pairs:
        return {}
    jobs, seed = {}, config.seed + _PAIR_SEEDS
    for arm in arms:
        names = [*arm.checkpoints, arm.checkpoints[-1]]
        folders = [*arm.checkpoints, f"{arm.checkpoints[-1]}_again"]
        jobs[arm.name] = [
            Job(f"{PAIRS}/{folder}", (config.base, name), seed + number)
            for number, (folder, name) in enumerate(zip(folders, names, strict=True))
        ]
        seed += len(names)
    return jobs


def all_jobs(arms: Sequence[Arm], config: EmergenceConfig) -> list[Job]:
    """Every dictionary, each once."""
    found = [
        job for group in (joint_jobs(arms, config), pair_jobs(arms, config)) for jobs in group.values() for job in jobs
    ]
    return list(dict.fromkeys(found))


def make_store(
    family: ModelFamily,
    prompts: PromptInput,
    work: Path,
    config: CacheConfig,
    *,
    force: bool = False,
) -> ActivationStore:
    """The store of all models; an interrupted one is gone on with, one made otherwise is refused (made again under force)."""
    return _again_where_forced(
        lambda forced: cache_activations(family, prompts, None, work / CACHE, config, force=forced), force
    )


def train_job(
    job: Job, work: Path, training: TrainSaeConfig, *, site: str | None, device: str, force: bool = False
) -> Crosscoder:
    """One dictionary, trained or read back."""
    store = ActivationStore.open(work / CACHE, models=job.models)
    shape, schedule = training.replace(models=job.models, seed=job.seed).resolve(store)

    def train(forced: bool) -> Crosscoder:
        return train_crosscoder(
            store,
            shape,
            schedule,
            work / job.name,
            site=site,
            device=device,
            pool_rows=training.pool_rows,
            force=forced,
        )

    return _again_where_forced(train, force)


def job_quality(job: Job, work: Path) -> dict[str, object]:
    """FVE per model on held-out tokens, L0 and dead share of a trained dictionary."""
    return dict(read_manifest(work / job.name)["results"])


def _again_where_forced(make: Callable[[bool], T], force: bool) -> T:
    """Keep what fits; where a folder holds other work, ``force`` makes that folder again and no other."""
    try:
        return make(False)
    except ArtifactError:
        if not force:
            raise
        return make(True)
