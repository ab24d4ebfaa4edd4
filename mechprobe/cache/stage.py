"""``mechprobe cache``: run every model of a family on the same tokens and write its residual streams to disk.

One model is in memory at a time, and one forward pass, which stops at the deepest site, records all sites. Which sequences
share a forward pass depends only on the stream and the settings, and no pass crosses the border of a shard. An
interrupted run therefore resumes to the same bytes, and so do several processes that divide the shards among them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mechprobe.cache.config import CacheConfig, StoreSubset
from mechprobe.cache.harvest.collect import collect_shards
from mechprobe.cache.harvest.plan import CacheWork, ShardWork, plan_rows
from mechprobe.cache.harvest.responses import (
    Responses,
    all_responded,
    read_questions,
    remove_questions,
    response_files,
    stream_of,
    write_questions,
    write_responses,
)
from mechprobe.cache.result import CacheCounts
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.disk import translate_disk_errors, write_hdf5
from mechprobe.cache.store.dtypes import STORED_AS, row_width
from mechprobe.cache.store.norms import DROPPED, NormFiles
from mechprobe.cache.store.shards import INDEX, ShardHeader, ShardRecord, finished_shard, map_rows, shard_file
from mechprobe.cache.store.token_file import TOKENS, WHOLE_STREAM, read_tokens, subset_of, write_tokens
from mechprobe.data.sources import PromptInput
from mechprobe.data.stream import TokenStream
from mechprobe.errors import ArtifactError, StoreError
from mechprobe.files import read_json, write_json
from mechprobe.locks import sole_writer
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity
from mechprobe.ranks import Ranks
from mechprobe.stage_folder import MANIFEST, UNFINISHED, Stage
from mechprobe.types import Site

T = TypeVar("T")

_PATIENCE = 120.0
"""Seconds to wait until files of another machine become visible in a shared folder."""


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

    A finished store of the same work is opened and an interrupted one is resumed. When models were added, a finished
    store is extended by them.

    Args:
        family: The models, which run in this order.
        prompts: A JSON-lines file, or prompts or texts in memory.
        sites: Sites such as ``resid_post.2``; those of ``config`` when None.
        out: Folder of the store.
        config: Settings; the defaults when None.
        kept: Keep only leading shards and held-out sequences, for training with `LiveActivations`; None keeps all rows.
        force: Make the store again from the beginning.
        ranks: The processes that make the store together (`ranks_of_environment`), all called with the same arguments
            and one shared folder; None for this process alone.

    Returns:
        The store, open.

    Raises:
        InputError, SiteError, ModelError: An argument cannot be used. Nothing is written.
        StoreError: The disk is too small, or an activation does not fit the dtype.
        ArtifactError: The folder holds other work or cannot be written.

    Example:
        >>> family = ModelFamily.load({"base": "lab/base", "rl": "lab/rl"})  # doctest: +SKIP
        >>> store = cache_activations(family, "prompts.jsonl", ["resid_post.1"], "cache")  # doctest: +SKIP
    """
    ranks = ranks or Ranks()
    with ranks.agreeing():  # only the first process reads and tokenizes the prompts
        first = CacheWork.of(family, prompts, sites, out, config, kept) if ranks.is_first else None
        work = first or ShardWork.checked(family, sites, out, config)
    with ExitStack() as entered, translate_disk_errors(work.out):
        stage: Stage | None = None
        with ranks.agreeing(), translate_disk_errors(work.out):
            if first is not None:
                stage = entered.enter_context(_open_stage(first, force=force))
        if not ranks.gather(stage is not None and stage.done)[0]:
            _make(work, stage, ranks)
    return ActivationStore.open(work.out, models=family.names)


@contextmanager
def _open_stage(work: CacheWork, *, force: bool) -> Iterator[Stage]:
    """Open the stage folder, in the one process that writes the files that exist once per store."""
    if (work.out / UNFINISHED).is_file():
        with sole_writer(work.out):  # another process may be writing there, so check before anything is removed
            pass
    if not force:
        _reopen_for_more_models(work)
    with (
        Stage.open(work.out, name="cache", config=work.identity, models=work.family.fingerprints, force=force) as stage,
        ExitStack() as lock,
    ):
        if not stage.done:
            lock.enter_context(sole_writer(work.out))
        yield stage


def _make(work: ShardWork, stage: Stage | None, ranks: Ranks) -> None:
    """Make the store, from the responses to the manifest. Only the first process has a ``stage`` and a `CacheWork`."""
    responses = _responses(work, ranks)
    made: tuple[TokenStream, TokenStream] | None = None
    with ranks.agreeing(), translate_disk_errors(work.out):
        if isinstance(work, CacheWork):
            made = _write_streams(work, responses)
    known = ranks.gather(None if made is None else made[0].hash)[0]
    what = f"the tokens of the first process in {work.out}"
    stream = made[0] if made else _wait_for(lambda: _written_stream(work.out, known), what)
    collect_shards(work, stream, ranks)
    ranks.wait()
    with ranks.agreeing(), translate_disk_errors(work.out):
        if isinstance(work, CacheWork) and stage is not None and made is not None:
            _finish(work, stage, *made)


def _responses(work: ShardWork, ranks: Ranks) -> Responses:
    """Write the responses of this process. The first process returns those of all, once they are written."""
    questions = work.prepared.questions if isinstance(work, CacheWork) else None
    if not ranks.gather(len(questions or ()))[0]:
        return {}
    with ranks.agreeing(), translate_disk_errors(work.out):
        if questions is not None and ranks.count > 1:
            write_questions(work.out, questions)
    if questions is None:
        questions = _wait_for(lambda: read_questions(work.out, work.config), f"the prompts in {work.out}")
    responses = write_responses(work.family, questions, work.out, ranks)
    if ranks.count == 1:
        return responses
    ranks.wait()
    no_rank = Ranks(ranks.count, ranks.count + 1)  # reads chunks of responses and writes none

    def complete() -> Responses | None:
        found = write_responses(work.family, questions, work.out, no_rank)
        return found if all_responded(questions, found) else None

    return _wait_for(complete, f"the responses of the other processes in {work.out}") if ranks.is_first else {}


def _write_streams(work: CacheWork, responses: Responses) -> tuple[TokenStream, TokenStream]:
    """The token stream that is stored and the whole one, which differ where a subset is kept; both are written."""
    with activity("dividing the tokens into shards"):
        whole = stream_of(work.prepared, responses)
    stream = whole if work.kept is None else subset_of(whole, work.kept, work.config.shard_rows)
    # The exact number of rows is known only now.
    plan_rows(work.family, work.prepared, work.out, stream.n_rows, stream.n_rows).require_space()
    write_tokens(work.out, stream)
    if work.kept is not None:
        write_tokens(work.out, whole, WHOLE_STREAM)
    return stream, whole


def _written_stream(folder: Path, known: str | None) -> TokenStream | None:
    """The token stream of the first process, mapped from its file; None as long as that file is not visible."""
    stream = read_tokens(folder) if (folder / TOKENS).is_file() else None
    return stream if stream is not None and stream.hash == known else None


def _wait_for(look: Callable[[], T | None], what: str) -> T:
    """Call ``look`` until it returns a value, because files in shared folders can become visible late."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise StoreError(f"Cannot find {what}; all processes must share the folder.")
        time.sleep(0.5)


def _finish(work: CacheWork, stage: Stage, stream: TokenStream, whole: TokenStream) -> None:
    """Write the index of every model and the manifest."""
    records = {name: _records(work.out / name, stream) for name in work.family.names}
    for name, own in records.items():
        index = {
            "model": name,
            "fingerprint": work.family[name].fingerprint,
            "dtype": work.config.dtype,
            "d_model": work.family[name].d_model,
            "sites": [str(site) for site in work.sites],
            "stream": stream.hash,
            "shards": [asdict(record) for record in own],
        }
        write_json(work.out / name / INDEX, index)
    files = _norm_files(work, stream)
    with activity("measuring norms"):
        norms, dropped = files.measure(work.family.tokenizer, work.config.drop_norm_above)
    remove_questions(work.out)
    files.remove()  # a finished store has none; a run that is killed here measures the shards again
    if work.config.drop_norm_above is not None:
        write_hdf5(work.out / DROPPED, {"row": np.flatnonzero(dropped)}, {})
    outputs = [
        TOKENS,
        *([DROPPED] if work.config.drop_norm_above is not None else []),
        *([WHOLE_STREAM] if work.kept else []),
        *(f"{name}/{INDEX}" for name in records),
    ]
    n_bytes = sum(record.n_bytes for own in records.values() for record in own)
    stage.finish(
        outputs=[*outputs, *response_files(work.out)],
        counts=_counts(work, stream, whole, n_bytes).to_json(),
        results={
            "stream": stream.hash,
            "shard_tokens": stream.shard_hashes,
            "models": list(work.family.names),
            "forward": {name: _forward_summary(own) for name, own in records.items()},
            "norms": norms.to_dict(),
        },
        seed=work.config.seed,
    )


def _norm_files(work: CacheWork, stream: TokenStream) -> NormFiles:
    widths, dtype = work.family.d_model, work.config.dtype

    def stored(model: str, site: str, index: int) -> np.ndarray:
        rows = stream.shards[index].rows
        header = ShardHeader(stream.hash, model, rows.start, len(rows), widths[model], dtype)
        out = np.empty((len(rows), row_width(dtype, widths[model])), dtype=STORED_AS[dtype])
        map_rows(work.out / model / shard_file(index), site, header).copy_into(out, 0)
        return out

    return NormFiles(work.out, widths, tuple(map(str, work.sites)), stream, dtype, stored)


def _records(folder: Path, stream: TokenStream) -> list[ShardRecord]:
    return [
        _wait_for(lambda shard=shard: finished_shard(folder, shard, stream.hash), f"shard {shard.index} in {folder}")
        for shard in stream.shards
    ]


def _counts(work: CacheWork, stream: TokenStream, whole: TokenStream, n_bytes: int) -> CacheCounts:
    return CacheCounts(
        rows=stream.n_rows,
        held_out_rows=int(stream.rows.held_out.sum()),
        response_rows=int(stream.rows.is_response.sum()),
        sequences=len(stream.sequences),
        sequences_cut=sum(sequence.n_cut > 0 for sequence in stream.sequences),
        shards=len(stream.shards),
        bytes=n_bytes,
        prompts_dropped=work.prepared.n_dropped,
        whole_rows=whole.n_rows if work.kept else None,
    )


def _forward_summary(records: Sequence[ShardRecord]) -> dict[str, Any]:
    """How the rows of a model were computed: readers, their proofs, and the number of shards per ``batch_tokens``."""
    known = [record.forward for record in records if record.forward]
    sizes = [str(forward["batch_tokens"]) for forward in known]
    return {
        "reader": sorted({str(forward["reader"]) for forward in known}),
        "proof": sorted({str(forward["proof"]) for forward in known if forward["proof"]}),
        "shards_by_batch_tokens": {size: sizes.count(size) for size in sorted(set(sizes))},
    }


def _reopen_for_more_models(work: CacheWork) -> None:
    """Turn a finished store into an unfinished one with more models, so that the base model runs only once.

    Existing shards are kept. `Stage.open` reports any difference other than models that were added.
    """
    try:
        found = read_json(work.out / MANIFEST)
        known, settings = dict(found["models"]), dict(found["config"])
    except (ArtifactError, KeyError, TypeError):
        return
    models, asked = work.family.fingerprints, dict[str, Any](work.identity)
    dtypes, asked_dtypes = settings.pop("model_dtypes", {}), asked.pop("model_dtypes")
    if known.items() < models.items() and settings == asked and dtypes.items() <= asked_dtypes.items():
        identity = {"stage": found["stage"], "config": work.identity, "inputs": found["inputs"], "models": models}
        write_json(work.out / UNFINISHED, identity)
        (work.out / MANIFEST).unlink()
