"""``mechprobe cache``: every model of a family reads the same tokens, and its residual streams go to disk.

One model is in memory at a time, all sites are read in one pass that stops at the deepest. Which sequences share a
forward pass depends on the stream and the settings alone, and no pass reaches over a shard's border: so an
interrupted run goes on to the same bytes, and so do several processes that deal the shards out among themselves.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.extend import reopen_for_more_models
from mechprobe.cache.harvest.forward_batches import collect_shard
from mechprobe.cache.harvest.memory import with_less_memory
from mechprobe.cache.harvest.plan import CachePlan, checked_sites, free_bytes, plan_of
from mechprobe.cache.harvest.preparation import (
    Reading,
    all_responded,
    prepare,
    response_files,
    stream_of,
    write_responses,
)
from mechprobe.cache.harvest.ranks import Ranks
from mechprobe.cache.harvest.readers import Reader, choose_reader
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.dtypes import training_norms
from mechprobe.cache.store.shards import (
    INDEX,
    TOKENS,
    ShardRecord,
    finished_shard,
    remove_partial_files,
    sole_writer,
    translate_disk_errors,
    write_shard,
    write_tokens,
)
from mechprobe.cache.store.store_subset import WHOLE_STREAM, StoreSubset, kept_part
from mechprobe.data.sources import PromptInput, as_prompts, hash_of
from mechprobe.data.stream import ShardRange, TokenStream
from mechprobe.errors import StoreError
from mechprobe.files import write_json
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.progress import Advance, progress
from mechprobe.stage_folder import UNFINISHED, Stage
from mechprobe.types import Site

T = TypeVar("T")

_PATIENCE = 120.0
"""Seconds for what another machine wrote to become visible in a shared folder."""


@dataclass(frozen=True)
class CacheWork:
    """What is to be cached, checked; a pure function of family, prompts and settings.

    Attributes:
        family: The models.
        reading: The prompts, tokenized.
        sites: Shallow to deep.
        config: The settings.
        out: Folder of the store.
        identity: What makes it this store and no other.
        kept: The part that goes to disk; None for all.
    """

    family: ModelFamily
    reading: Reading
    sites: tuple[Site, ...]
    config: CacheConfig
    out: Path
    identity: dict[str, object]
    kept: StoreSubset | None = None

    @classmethod
    def of(
        cls,
        family: ModelFamily,
        prompts: PromptInput,
        sites: Sequence[Site | str] | None,
        out: Path | str,
        config: CacheConfig | None,
        kept: StoreSubset | None = None,
    ) -> "CacheWork":
        """Check everything that can be checked before anything is written.

        Raises:
            InputError, SiteError, ModelError: Something given cannot be used.
            StoreError: The disk has no room.
        """
        config = config or CacheConfig()
        if sites is not None:
            config = config.replace(sites=tuple(str(site) for site in sites))
        checked = checked_sites(family, config)
        items = as_prompts(prompts)
        reading = prepare(family, items, config)
        if kept is None:
            plan_of(family, reading, Path(out)).require_space()
        identity = {
            **config.identity(),
            "sites": [str(site) for site in checked],
            "prompts": hash_of(items),
            "tokenizer": family.tokenizer_fingerprint,
            **reading.identity,
            "model_dtypes": {model.name: model.dtype for model in family},
        }
        if kept is not None:
            identity["kept"] = kept.model_dump(mode="json")
        return cls(family, reading, tuple(checked), config, Path(out), identity, kept)


def cache_activations(
    family: ModelFamily,
    prompts: PromptInput,
    sites: Sequence[Site | str] | None = None,
    out: Path | str = "cache",
    config: CacheConfig | None = None,
    *,
    kept: StoreSubset | None = None,
    force: bool = False,
    ranks: Ranks | None = None,
) -> ActivationStore:
    """Run every model on the same tokens and store its residual streams.

    Args:
        family: The models; the first named is run first.
        prompts: A JSON-lines file, or prompts or texts in memory.
        sites: Places such as ``resid_post.2``; those of ``config`` when None.
        out: Folder of the store. A finished store of the same work is opened, an interrupted one is gone on with,
            and one that has some of the models already is given the others.
        config: Settings; the defaults when None.
        kept: Keep only the leading shards and held-out sequences, for training by `LiveActivations`; None keeps all.
        force: Make it again from the beginning.
        ranks: The processes that make it together (`ranks_of_environment`), all called with the same arguments and
            one shared folder; this one alone when None.

    Returns:
        The store, open.

    Raises:
        InputError, SiteError, ModelError: Something given cannot be used; nothing is written.
        StoreError: The disk has no room, or an activation does not fit the dtype.
        ArtifactError: The folder holds other work.

    Example:
        >>> family = ModelFamily.load({"base": "lab/base", "rl": "lab/rl"})  # doctest: +SKIP
        >>> store = cache_activations(family, "prompts.jsonl", ["resid_post.1"], "cache")  # doctest: +SKIP
    """
    ranks = ranks or Ranks()
    with ranks.agreeing():
        work = CacheWork.of(family, prompts, sites, out, config, kept)
    with ExitStack() as held, translate_disk_errors(work.out):
        stage: Stage | None = None
        with ranks.agreeing(), translate_disk_errors(work.out):
            if ranks.is_first:
                stage = held.enter_context(_first_entered(work, force=force))
        if not ranks.gather(stage is not None and stage.done)[0]:
            _make(work, stage, ranks)
    return ActivationStore.open(work.out, models=family.names)


@contextmanager
def _first_entered(work: CacheWork, *, force: bool) -> Iterator[Stage]:
    """The stage folder, entered by the one process that may write what there is one of."""
    if (work.out / UNFINISHED).is_file():
        with sole_writer(work.out):  # before anything there is tidied up: another process may be in the middle of it
            pass
    if not force:
        reopen_for_more_models(work.out, work.identity, work.family.fingerprints)
    with (
        Stage.open(work.out, name="cache", config=work.identity, models=work.family.fingerprints, force=force) as stage,
        ExitStack() as held,
    ):
        if not stage.done:
            held.enter_context(sole_writer(work.out))
            remove_partial_files(work.out)
        yield stage


def _make(work: CacheWork, stage: Stage | None, ranks: Ranks) -> None:
    """Everything from the responses to the manifest; ``stage`` is the first process's."""
    whole = _stream_of_all(work, ranks)
    stream = whole if work.kept is None else kept_part(whole, work.kept, work.config.shard_rows)
    with ranks.agreeing(), translate_disk_errors(work.out):
        _require_exact_space(work, stream)
        if ranks.is_first:
            write_tokens(work.out, stream)
            if work.kept is not None:
                write_tokens(work.out, whole, WHOLE_STREAM)
    collect_shards(work, stream, ranks)
    ranks.wait()
    with ranks.agreeing(), translate_disk_errors(work.out):
        if stage is not None:
            records = {model.name: _records(work.out / model.name, stream) for model in work.family}
            for model in work.family:
                _write_index(model, work, stream, records[model.name])
            stage.finish(
                outputs=[
                    TOKENS,
                    *([WHOLE_STREAM] if work.kept else []),
                    *(f"{name}/{INDEX}" for name in work.family.names),
                    *response_files(work.out),
                ],
                counts=_counts(stream, sum(record.n_bytes for own in records.values() for record in own))
                | {"prompts_dropped": work.reading.n_dropped}
                | ({"whole_rows": whole.n_rows} if work.kept else {}),
                results={
                    "stream": stream.hash,
                    "shard_tokens": stream.shard_hashes,
                    "models": list(work.family.names),
                    "forward": {name: forward_summary(own) for name, own in records.items()},
                },
                seed=work.config.seed,
            )


def _stream_of_all(work: CacheWork, ranks: Ranks) -> TokenStream:
    """The token stream, after every process has written its responses."""
    responses = write_responses(work.family, work.reading, work.out, ranks)
    if ranks.count > 1:
        ranks.wait()

        def complete() -> dict | None:
            found = write_responses(work.family, work.reading, work.out, Ranks(ranks.count, ranks.count + 1))
            return found if all_responded(work.reading, found) else None

        responses = _patiently(complete, f"the responses of the other processes in {work.out}")
    stream = stream_of(work.reading, responses)
    if len(set(ranks.gather(stream.hash))) > 1:
        raise StoreError(f"The processes do not read the same tokens; give all of them one shared {work.out}.")
    return stream


def _patiently(look: Callable[[], T | None], what: str) -> T:
    """What ``look`` finds, once it is visible here; shared folders can lag behind."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise StoreError(f"Cannot see {what}; the folder must be shared by all processes.")
        time.sleep(0.5)


def _records(folder: Path, stream: TokenStream) -> list[ShardRecord]:
    return [
        _patiently(lambda shard=shard: finished_shard(folder, shard, stream.hash), f"shard {shard.index} in {folder}")
        for shard in stream.shards
    ]


def _counts(stream: TokenStream, n_bytes: int) -> dict[str, int]:
    return {
        "rows": stream.n_rows,
        "held_out_rows": int(stream.rows.held_out.sum()),
        "response_rows": int(stream.rows.is_response.sum()),
        "sequences": len(stream.sequences),
        "sequences_cut": sum(sequence.n_cut > 0 for sequence in stream.sequences),
        "shards": len(stream.shards),
        "bytes": n_bytes,
    }


def _require_exact_space(work: CacheWork, stream: TokenStream) -> None:
    config, out = work.config, work.out
    CachePlan(
        n_prompts=0,
        n_rows=stream.n_rows,
        most_rows=stream.n_rows,
        widths=work.family.d_model,
        sites=config.sites,
        dtype=config.dtype,
        free_bytes=free_bytes(out),
        done_bytes=sum(file.stat().st_size for file in out.glob("*/shard_*.h5")),
    ).require_space()


def forward_summary(records: Sequence[ShardRecord]) -> dict[str, object]:
    """How a model was read: reader, proof, and number of shards by the tokens of a pass."""
    known = [record.forward for record in records if record.forward]
    sizes = [str(forward["batch_tokens"]) for forward in known]
    return {
        "reader": sorted({str(forward["reader"]) for forward in known}),
        "proof": sorted({str(forward["proof"]) for forward in known if forward["proof"]}),
        "shards_by_batch_tokens": {size: sizes.count(size) for size in sorted(set(sizes))},
    }


def collect_shards(work: CacheWork, stream: TokenStream, ranks: Ranks) -> int:
    """Every shard of every model that is this process's and not yet there; returns how many were made."""
    n_rows = sum(len(shard.rows) for shard in stream.shards if ranks.owns(shard.index))
    n_made, batch_tokens = 0, work.config.batch_tokens
    with progress(n_rows * len(work.family), "caching", unit="tokens", quiet=not ranks.is_first) as advance:
        for model in work.family:
            collecting = _Collecting(model, work, stream, batch_tokens)
            n_made += collecting.run(ranks, advance)
            batch_tokens = collecting.batch_tokens
            if work.config.models_in_memory == "one":
                model.release()
    return n_made


class _Collecting:
    """One model's way through the shards."""

    def __init__(self, model: LanguageModel, work: CacheWork, stream: TokenStream, batch_tokens: int) -> None:
        self.model, self.work, self.stream = model, work, stream
        self.batch_tokens = batch_tokens
        self.folder = work.out / model.name
        self._reader: Reader | None = None

    def run(self, ranks: Ranks, advance: Advance) -> int:
        """Make what is this process's and missing; returns the number of shards made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        n_made = 0
        for shard in self.stream.shards:
            if not ranks.owns(shard.index):
                continue
            record = finished_shard(self.folder, shard, self.stream.hash)
            if record is None:
                self._make(shard)
                n_made += 1
            else:  # after a back-off the smaller size holds for the rest, in an interrupted run too
                self.batch_tokens = min(self.batch_tokens, int(record.forward.get("batch_tokens", self.batch_tokens)))
            advance(len(shard.rows), model=self.model.name)
        return n_made

    def _make(self, shard: ShardRange) -> None:
        config, stream = self.work.config, self.stream
        reader = self._reader = self._reader or self._within_memory(
            lambda size: choose_reader(self.model, stream, self.work.sites, config.replace(batch_tokens=size)),
            stream.shards[0],
        )
        arrays = self._within_memory(
            lambda size: collect_shard(
                self.model, stream, shard, self.work.sites, config.replace(batch_tokens=size), reader.read
            ),
            shard,
        )
        write_shard(
            self.folder,
            shard,
            arrays,
            model=self.model.name,
            dtype=config.dtype,
            stream_hash=stream.hash,
            norms=training_norms(arrays, ~stream.rows.held_out[shard.rows.start : shard.rows.stop], config.dtype),
            forward={"reader": reader.way, "proof": reader.proof, "batch_tokens": self.batch_tokens},
        )

    def _within_memory(self, work: Callable[[int], T], shard: ShardRange) -> T:
        sequences = (self.stream.sequences[index] for index in shard.sequences)
        result, self.batch_tokens = with_less_memory(
            work,
            self.batch_tokens,
            smallest=max(len(sequence.ids) for sequence in sequences),
            name="batch_tokens",
            where=f"Model {self.model.name}, shard {shard.index}",
        )
        return result


def _write_index(model: LanguageModel, work: CacheWork, stream: TokenStream, records: Sequence[ShardRecord]) -> None:
    write_json(
        work.out / model.name / INDEX,
        {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "dtype": work.config.dtype,
            "d_model": model.d_model,
            "sites": [str(site) for site in work.sites],
            "stream": stream.hash,
            "shards": [asdict(record) for record in records],
        },
    )
