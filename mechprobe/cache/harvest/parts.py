"""A share of a store, written by one of several jobs that never meet (``--part I/N``), such as those of a job array.

Every part writes its own shards into the one folder. `cache_activations`, run once when all have ended, writes what is
still missing, the token stream and the manifest.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.preparation import all_responded, stream_of, write_responses
from mechprobe.cache.harvest.ranks import Ranks
from mechprobe.cache.stage import CacheWork, collect_shards
from mechprobe.cache.store.shards import sole_writer, translate_disk_errors
from mechprobe.data.sources import PromptInput
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import Stage
from mechprobe.types import Site

_FINISH = "When all parts have ended, run the same command without --part: it writes what is missing and finishes."
_AGAIN = (
    "Responses of other parts are missing: when all parts have ended, run every part again, then once without --part."
)


@dataclass(frozen=True, slots=True)
class PartResult:
    """What one part did.

    Attributes:
        n_made: Shards written.
        n_found: Shards of its own that were there already.
        next_step: What to run next, in a sentence.
    """

    n_made: int
    n_found: int
    next_step: str


def cache_part(
    family: ModelFamily,
    prompts: PromptInput,
    sites: Sequence[Site | str] | None = None,
    out: Path | str = "cache",
    config: CacheConfig | None = None,
    *,
    part: Ranks,
) -> PartResult:
    """Write the share of ``part`` of the store that `cache_activations` with the same arguments makes.

    Where models write the responses, the parts write these first, each its own chunks; the shards need all of them, so
    that a part that ends before the others have written theirs is to be run a second time.

    Raises:
        InputError, SiteError, ModelError: Something given cannot be used; nothing is written.
        StoreError: The disk has no room, or a process that makes the whole store is at work.
        ArtifactError: The folder holds other work.
    """
    work = CacheWork.of(family, prompts, sites, out, config)
    with translate_disk_errors(work.out), _entered(work) as stage:
        if stage.done:
            return PartResult(0, 0, f"{work.out} is finished.")
        responses = write_responses(family, work.reading, work.out, part)
        if not all_responded(work.reading, responses):
            return PartResult(0, 0, _AGAIN)
        stream = stream_of(work.reading, responses)
        n_made = collect_shards(work, stream, part)
        n_own = sum(part.owns(shard.index) for shard in stream.shards) * len(family)
        return PartResult(n_made, n_own - n_made, _FINISH)


@contextmanager
def _entered(work: CacheWork) -> Iterator[Stage]:
    """The stage folder; parts that start at one moment enter it one after another, then work side by side."""
    work.out.mkdir(parents=True, exist_ok=True)
    with sole_writer(work.out, part=True):
        gate = os.open(work.out.parent, os.O_RDONLY)
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            with Stage.open(
                work.out, name="cache", config=work.identity, models=work.family.fingerprints, beside_others=True
            ) as stage:
                fcntl.flock(gate, fcntl.LOCK_UN)
                yield stage
        finally:
            os.close(gate)
