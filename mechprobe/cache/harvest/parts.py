"""One part of a store (``--part I/N``), for jobs that do not communicate, such as those of a job array.

Every part writes its own shards into the same folder. When all parts have ended, `cache_activations` runs once: it writes
what is missing, the token stream and the manifest.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.collect import collect_shards
from mechprobe.cache.harvest.plan import CacheWork
from mechprobe.cache.harvest.responses import all_responded, stream_of, write_responses
from mechprobe.cache.result import PartResult
from mechprobe.cache.store.disk import translate_disk_errors
from mechprobe.data.sources import PromptInput
from mechprobe.errors import ConfigError
from mechprobe.locks import folder_lock, sole_writer
from mechprobe.models.family import ModelFamily
from mechprobe.ranks import Ranks
from mechprobe.stage_folder import Stage
from mechprobe.types import Site

_FINISH = "When all parts have ended, run the command without --part to write what is missing and finish the store."
_AGAIN = "Responses of other parts are missing; when all have ended, run every part again, then once without --part."


def cache_part(
    family: ModelFamily,
    prompts: PromptInput,
    sites: Sequence[Site | str] | None = None,
    out: Path | str = "cache",
    config: CacheConfig | None = None,
    *,
    part: Ranks,
) -> PartResult:
    """Write one part of the store that `cache_activations` makes with the same arguments.

    Where models respond to the prompts, each part first generates its own chunks of responses. The shards need the
    responses of all parts, so a part that ends before the others have written theirs must run a second time.

    Raises:
        InputError, SiteError, ModelError: An argument cannot be used. Nothing is written.
        StoreError: The disk is too small, or a process is writing the whole store.
        ArtifactError: The folder holds other work or cannot be written.
    """
    work = CacheWork.of(family, prompts, sites, out, config)
    with translate_disk_errors(work.out), _entered(work) as stage:
        if stage.done:
            return PartResult(0, 0, f"{work.out} is finished.")
        questions = work.prepared.questions
        responses = write_responses(family, questions, work.out, part)
        if not all_responded(questions, responses):
            return PartResult(0, 0, _AGAIN)
        stream = stream_of(work.prepared, responses)
        n_made = collect_shards(work, stream, part)
        n_own = sum(part.owns(shard.index) for shard in stream.shards) * len(family)
        return PartResult(n_made, n_own - n_made, _FINISH)


@contextmanager
def _entered(work: CacheWork) -> Iterator[Stage]:
    """Open the stage folder. Parts that start at the same time enter one after another, then work in parallel."""
    work.out.mkdir(parents=True, exist_ok=True)
    with (
        sole_writer(work.out, part=True),
        folder_lock(work.out.parent, fcntl.LOCK_EX) as release,
        Stage.open(
            work.out, name="cache", config=work.identity, models=work.family.fingerprints, beside_others=True
        ) as stage,
    ):
        release()
        yield stage


def parse_part(text: str) -> Ranks:
    """Parse ``2/8`` as part 2 of 8 (counted from 0), for processes that do not communicate.

    Raises:
        ConfigError: The text is not a part.
    """
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal() or not 0 <= int(index) < int(count):
        raise ConfigError(f"--part {text!r} is not valid; write I/N with I from 0 to N-1, for example 0/8.")
    return Ranks(int(index), int(count))
