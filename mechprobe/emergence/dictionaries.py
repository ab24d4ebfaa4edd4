"""What emergence is read from: one store of base and all checkpoints, and the dictionaries trained on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.data.sources import PromptInput
from mechprobe.dictionary.config import TrainSaeConfig
from mechprobe.dictionary.stage import train_crosscoder
from mechprobe.emergence.arms import Arm
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ArtifactError
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import read_manifest
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


def pair_jobs(arms: Sequence[Arm], config: EmergenceConfig) -> dict[str, list[list[Job]]]:
    """Arm to base against each checkpoint alone, once for each of the seeds.

    The last checkpoint stands twice in each repetition, with another seed: what its two dictionaries share is the
    ceiling of matching.
    """
    if not config.pairs:
        return {}
    jobs: dict[str, list[list[Job]]] = {arm.name: [] for arm in arms}
    seed = config.seed + _PAIR_SEEDS
    for number in range(config.seeds):
        folder = PAIRS if number == 0 else f"{PAIRS}_seed{config.seed + number}"
        for arm in arms:
            names = [*arm.checkpoints, f"{arm.checkpoints[-1]}_again"]
            models = [*arm.checkpoints, arm.checkpoints[-1]]
            jobs[arm.name].append(
                [
                    Job(f"{folder}/{name}", (config.base, model), seed + place)
                    for place, (name, model) in enumerate(zip(names, models, strict=True))
                ]
            )
            seed += len(names)
    return jobs


def all_jobs(arms: Sequence[Arm], config: EmergenceConfig) -> list[Job]:
    """Every dictionary, each once."""
    joint = [job for jobs in joint_jobs(arms, config).values() for job in jobs]
    pairs = [job for repeats in pair_jobs(arms, config).values() for jobs in repeats for job in jobs]
    return list(dict.fromkeys([*joint, *pairs]))


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
