"""The store of base and all checkpoints, and the dictionaries that are trained on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from mechprobe.emergence.result import DictionaryQuality
from mechprobe.errors import ArtifactError
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import MANIFEST, read_manifest
from sae_training import Crosscoder

T = TypeVar("T")

CACHE, PAIRS, TOGETHER = "cache", "pairs", "together"
_PAIR_SEEDS = 1000
"""First seed of the pairwise dictionaries. Each has its own, so that they are aligned by nothing but their decoders."""


@dataclass(frozen=True)
class Job:
    """One dictionary to train over ``models`` (base first), in the folder ``name`` of the work folder."""

    name: str
    models: tuple[str, ...]
    seed: int
    """Seed of the weights and of the order of rows."""


def joint_jobs(arms: Sequence[Arm], config: EmergenceConfig) -> dict[str, list[Job]]:
    """Arm → its dictionaries over base and checkpoints, one for each seed; with ``together``, arms share them."""
    if config.layout == "together":
        everything = (config.base, *(model for arm in arms for model in arm.checkpoints))
        shared = {arm.name: (TOGETHER, everything) for arm in arms}
    else:
        shared = {arm.name: (arm.name, (config.base, *arm.checkpoints)) for arm in arms}
    seeds = range(config.seed, config.seed + config.seeds)
    return {arm: [Job(f"{name}_seed{seed}", models, seed) for seed in seeds] for arm, (name, models) in shared.items()}


def pair_jobs(arms: Sequence[Arm], config: EmergenceConfig) -> dict[str, list[list[Job]]]:
    """Arm → its dictionaries of base and one checkpoint each, once for each seed; empty without ``config.pairs``.

    Each repetition has two dictionaries of the last checkpoint, with different seeds. What these two share is the ceiling
    of matching.
    """
    if not config.pairs:
        return {}
    jobs: dict[str, list[list[Job]]] = {arm.name: [] for arm in arms}
    seed = config.seed + _PAIR_SEEDS
    for number in range(config.seeds):
        folder = PAIRS if number == 0 else f"{PAIRS}_seed{config.seed + number}"
        for arm in arms:
            last = arm.checkpoints[-1]
            models = {**{name: name for name in arm.checkpoints}, f"{last}_again": last}
            jobs[arm.name].append(
                [
                    Job(f"{folder}/{name}", (config.base, model), seed + place)
                    for place, (name, model) in enumerate(models.items())
                ]
            )
            seed += len(models)
    return jobs


def all_jobs(arms: Sequence[Arm], config: EmergenceConfig) -> list[Job]:
    """Every dictionary once."""
    joint = [job for jobs in joint_jobs(arms, config).values() for job in jobs]
    pairs = [job for repeats in pair_jobs(arms, config).values() for jobs in repeats for job in jobs]
    return list(dict.fromkeys([*joint, *pairs]))


def make_store(
    family: ModelFamily, prompts: PromptInput, work: Path, config: CacheConfig, *, force: bool = False
) -> ActivationStore:
    """The store of all models. An interrupted store is resumed; with ``force``, one of other settings is made again."""
    return _again_where_forced(partial(cache_activations, family, prompts, None, work / CACHE, config), force)


def train_job(
    job: Job, work: Path, training: TrainSaeConfig, *, site: str | None, device: str, force: bool = False
) -> Crosscoder:
    """Train one dictionary, or read it back; with ``force``, one of other settings is trained again."""
    store = ActivationStore.open(work / CACHE, models=job.models)
    shape, schedule = training.replace(models=job.models, seed=job.seed).resolve(store)
    settings = {"site": site, "device": device, "pool_rows": training.pool_rows}
    return _again_where_forced(partial(train_crosscoder, store, shape, schedule, work / job.name, **settings), force)


def job_quality(job: Job, work: Path) -> DictionaryQuality:
    """Quality of a trained dictionary on held-out tokens, from its manifest."""
    folder = work / job.name
    return DictionaryQuality.checked(read_manifest(folder)["results"], folder / MANIFEST)


def _again_where_forced(make: Callable[..., T], force: bool) -> T:
    """Make a stage; if its folder holds other work and ``force`` is set, make that folder again."""
    try:
        return make(force=False)
    except ArtifactError:
        if not force:
            raise
        return make(force=True)
