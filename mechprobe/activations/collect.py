"""``mechprobe cache``: every model of a family reads the same tokens, and its residual streams go to disk.

One model is in memory at a time, all sites are read in one pass that stops at the deepest. Which sequences share a
forward pass depends on the stream and the settings alone, and no pass reaches over a shard's border: so an
interrupted run goes on to the same bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechprobe.activations.config import CacheConfig
from mechprobe.activations.extend import reopen_for_more_models
from mechprobe.activations.kept import WHOLE_STREAM, KeptRows, kept_part
from mechprobe.activations.numbers import STORED_AS, row_width, to_stored, training_norms
from mechprobe.activations.plan import CachePlan, checked_sites, free_bytes, plan_of
from mechprobe.activations.reading import prepare, response_files, stream_of, write_responses
from mechprobe.activations.shards import (
    INDEX,
    TOKENS,
    ShardRecord,
    finished_shard,
    remove_partial_files,
    sole_writer,
    told_of_disk,
    write_shard,
    write_tokens,
)
from mechprobe.activations.store import ActivationStore
from mechprobe.artifacts import Stage, write_json
from mechprobe.data.sources import PromptInput, as_prompts, hash_of
from mechprobe.data.stream import ShardRange, TokenStream
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_bridge
from mechprobe.progress import Advance, progress
from mechprobe.types import Site


def cache_activations(
    family: ModelFamily,
    prompts: PromptInput,
    sites: Sequence[Site | str] | None = None,
    out: Path | str = "cache",
    config: CacheConfig | None = None,
    *,
    kept: KeptRows | None = None,
    force: bool = False,
) -> ActivationStore:
    """Run every model on the same tokens and store its residual streams.

    Args:
        family: The models; the first named is run first.
        prompts: A file or dataset (`PromptsConfig`, a path, or ``hub:NAME``), or prompts or texts in memory.
        sites: Places such as ``resid_post.2``; those of ``config`` when None.
        out: Folder of the store. A finished store of the same work is opened, an interrupted one is gone on with,
            and one that has some of the models already is given the others.
        config: Settings; the defaults when None.
        kept: Keep only the leading shards and held-out sequences, for training by `LiveActivations`; None keeps all.
        force: Make it again from the beginning.

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
    config, out = config or CacheConfig(), Path(out)
    if sites is not None:
        config = config.replace(sites=tuple(str(site) for site in sites))
    checked = checked_sites(family, config)
    items = as_prompts(prompts)
    reading = prepare(family, items, config)
    if kept is None:
        plan_of(family, reading, out).require_space()
    identity = {
        **config.model_dump(mode="json"),
        "sites": [str(site) for site in checked],
        "prompts": hash_of(items),
        "tokenizer": family.tokenizer_fingerprint,
        **reading.identity,
        "model_dtypes": {model.name: model.dtype for model in family},
    }
    if kept is not None:
        identity["kept"] = kept.model_dump(mode="json")
    if not force:
        reopen_for_more_models(out, identity, family.fingerprints)
    with (
        told_of_disk(out),
        Stage.open(out, name="cache", config=identity, models=family.fingerprints, force=force) as stage,
    ):
        if not stage.done:
            with sole_writer(out):
                remove_partial_files(out)
                whole = stream_of(reading, write_responses(family, reading, out))
                stream = whole if kept is None else kept_part(whole, kept, config.shard_rows)
                _require_exact_space(family, stream, config, out)
                write_tokens(out, stream)
                if kept is not None:
                    write_tokens(out, whole, WHOLE_STREAM)
                n_bytes = _collect(family, stream, checked, config, out)
                stage.finish(
                    outputs=[
                        TOKENS,
                        *([WHOLE_STREAM] if kept else []),
                        *(f"{name}/{INDEX}" for name in family.names),
                        *response_files(out),
                    ],
                    counts=_counts(stream, n_bytes)
                    | {"prompts_dropped": reading.n_dropped}
                    | ({"whole_rows": whole.n_rows} if kept else {}),
                    results={
                        "stream": stream.hash,
                        "shard_tokens": stream.shard_hashes,
                        "models": list(family.names),
                    },
                    seed=config.seed,
                )
    return ActivationStore.open(out, models=family.names)


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


def _require_exact_space(family: ModelFamily, stream: TokenStream, config: CacheConfig, out: Path) -> None:
    CachePlan(
        n_prompts=0,
        n_rows=stream.n_rows,
        most_rows=stream.n_rows,
        widths=family.d_model,
        sites=config.sites,
        dtype=config.dtype,
        free_bytes=free_bytes(out),
        done_bytes=sum(file.stat().st_size for file in out.glob("*/shard_*.h5")),
    ).require_space()


def _collect(family: ModelFamily, stream: TokenStream, sites: Sequence[Site], config: CacheConfig, out: Path) -> int:
    """Every shard of every model that is not yet there; returns the bytes of all of them."""
    n_bytes = 0
    with progress(stream.n_rows * len(family), "caching", unit="tokens") as advance:
        for model in family:
            records = _collect_model(model, stream, sites, config, out / model.name, advance)
            n_bytes += sum(record.n_bytes for record in records)
            model.release()
    return n_bytes


def _collect_model(
    model: LanguageModel,
    stream: TokenStream,
    sites: Sequence[Site],
    config: CacheConfig,
    folder: Path,
    advance: Advance,
) -> list[ShardRecord]:
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for shard in stream.shards:
        record = finished_shard(folder, shard, stream.hash)
        if record is None:
            arrays = collect_shard(model, stream, shard, sites, config)
            training = ~stream.rows.held_out[shard.rows.start : shard.rows.stop]
            norms = training_norms(arrays, training, config.dtype)
            record = write_shard(
                folder, shard, arrays, model=model.name, dtype=config.dtype, stream_hash=stream.hash, norms=norms
            )
        advance(len(shard.rows), model=model.name)
        records.append(record)
    write_json(
        folder / INDEX,
        {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "dtype": config.dtype,
            "d_model": model.d_model,
            "sites": [str(site) for site in sites],
            "stream": stream.hash,
            "shards": [asdict(record) for record in records],
        },
    )
    return records


def forward_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences that share a forward pass: of similar length, at most ``batch_tokens`` with padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batch and lengths[index] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """``(ids, attention_mask)``, padded on the right: nothing before the padding can see it."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = 1
    return ids, mask


def collect_shard(
    model: LanguageModel, stream: TokenStream, shard: ShardRange, sites: Sequence[Site], config: CacheConfig
) -> dict[str, np.ndarray]:
    """The stored residuals of one shard, ``[row row_width]`` per site, in the stream's row order."""
    shape = (len(shard.rows), row_width(config.dtype, model.d_model))
    stored = {str(site): np.empty(shape, dtype=STORED_AS[config.dtype]) for site in sites}
    ids = [stream.sequences[index].ids for index in shard.sequences]
    pad_id = int(str(model.tokenizer.pad_token_id))
    for batch in forward_batches([len(row) for row in ids], config.batch_tokens):
        tokens, mask = (part.to(model.device) for part in padded([ids[index] for index in batch], pad_id))
        resid = residuals_bridge(model, tokens, mask, sites)
        for number, index in enumerate(batch):
            sample = shard.sequences[index]
            first, last = (int(row) for row in stream.row_start[sample : sample + 2])
            position = torch.from_numpy(stream.rows.position[first:last]).long().to(model.device)
            for site in sites:
                where = slice(first - shard.rows.start, last - shard.rows.start)
                try:
                    stored[str(site)][where] = to_stored(resid[site][number, position], config.dtype)
                except StoreError as error:
                    name = stream.sequences[sample].id
                    raise StoreError(f"Model {model.name}, {site}, sequence {name!r}: {error}") from None
    return stored
