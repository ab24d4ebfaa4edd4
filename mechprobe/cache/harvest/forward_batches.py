"""Forward passes over one shard: which sequences share a pass, which row each residual becomes, and how it is read.

Residuals are read through TransformerBridge, or faster, by hooks on the transformers model. Both give the same bits for
most architectures. Where the bridge splits fused weights (GPT-2, BLOOM), the last bits of float32 differ. The bytes of a
store must not depend on the reader, so plain hooks are used only after they have given the bits of the bridge on batches
of the same token stream.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.cache.config import CacheConfig, StoreDtype
from mechprobe.cache.store.background import Background
from mechprobe.cache.store.dtypes import STORED_AS, row_width, start_storing, to_stored
from mechprobe.data.stream import ShardRange, TokenStream
from mechprobe.errors import DependencyError, ModelError, StoreError
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_bridge, residuals_plain
from mechprobe.progress import Advance
from mechprobe.types import Site
from sae_training.stream import sent

logger = logging.getLogger(__name__)

N_COMPARED = 4
"""Number of forward batches on which both readers are compared."""

_BATCHES_AHEAD = 2
"""Most forward batches whose rows are not stored yet, so that a GPU has a batch to compute while the host stores another."""

ReaderKind = Literal["bridge", "plain"]

ResidualsFunction = Callable[[LanguageModel, Tensor, Tensor, Sequence[Site]], dict[Site, Tensor]]
"""``(model, ids [batch pos], attention mask [batch pos] on any device, sites)`` to the residuals ``[batch pos d_model]`` per site."""


def forward_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences that share a forward pass: similar lengths, at most ``batch_tokens`` tokens with padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batch and lengths[index] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """``(ids, attention_mask)`` with padding on the right, which no earlier token can attend to."""
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


@dataclass(frozen=True)
class ForwardBatch:
    """One forward pass, and which of its residuals are rows of the store.

    Attributes:
        sequences: Indices of the sequences in the stream.
        ids: Token ids, padded on the right.
        mask: 1 for tokens, 0 for padding.
        taken: Indices of the kept tokens in the flattened pass.
        rows: Row in the shard of each kept token.
    """

    sequences: tuple[int, ...]
    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    taken: Int[Tensor, " kept"]
    rows: Int[np.ndarray, " kept"]


def batches_of(stream: TokenStream, shard: ShardRange, batch_tokens: int, pad_id: int) -> Iterator[ForwardBatch]:
    """The forward passes over a shard, a pure function of the stream and ``batch_tokens``."""
    ids = [stream.sequences[index].ids for index in shard.sequences]
    for batch in forward_batches([len(row) for row in ids], batch_tokens):
        samples = np.asarray([shard.sequences[index] for index in batch], dtype=np.int64)
        tokens, mask = padded([ids[index] for index in batch], pad_id)
        first = stream.row_start[samples]
        n_rows = stream.row_start[samples + 1] - first
        # Rows of the sequences one after another: a running count, shifted to the first row of each sequence.
        rows = np.arange(n_rows.sum()) + np.repeat(first - (np.cumsum(n_rows) - n_rows), n_rows)
        places = np.repeat(np.arange(len(batch)) * tokens.shape[1], n_rows) + stream.rows.position[rows]
        yield ForwardBatch(
            tuple(samples.tolist()), tokens, mask, torch.from_numpy(places.astype(np.int64)), rows - shard.rows.start
        )


def collect_shard(
    model: LanguageModel,
    stream: TokenStream,
    shard: ShardRange,
    sites: Sequence[Site],
    config: CacheConfig,
    residuals: ResidualsFunction = residuals_bridge,
    advance: Advance = lambda _n: None,
) -> dict[str, np.ndarray]:
    """Run a model over one shard; ``advance`` is told the number of rows of every batch.

    Returns:
        Site to stored rows ``[row row_width]``, in the row order of the stream.

    Raises:
        StoreError: An activation is not finite or too large for the dtype; the message names the sequence.
    """
    shape = (len(shard.rows), row_width(config.dtype, model.d_model))
    stored = {site: np.empty(shape, dtype=STORED_AS[config.dtype]) for site in sites}
    fits: dict[Site, list[Tensor]] = {site: [] for site in sites}
    failed = threading.Event()

    def rows_of(batch: ForwardBatch) -> Iterator[tuple[Site, Tensor]]:
        resid = residuals(model, sent(batch.ids, model.input_device), batch.mask, sites)
        for site in sites:
            values = resid.pop(site).flatten(0, 1)
            yield site, values.index_select(0, sent(batch.taken, values.device))

    def store(batch: ForwardBatch, copies: Mapping[Site, Callable[[], tuple[np.ndarray, Tensor]]]) -> None:
        for site, ended in copies.items():
            stored[site][batch.rows], fit = ended()
            fits[site].append(fit)
            if fit.device.type == "cpu" and not fit:  # on the host this read waits for nothing
                failed.set()

    # This thread only starts work on a GPU, and never waits for its results: another thread does, and stores them.
    with Background("rows", ahead=_BATCHES_AHEAD) as storing:
        for batch in batches_of(stream, shard, config.batch_tokens, model.pad_id):
            if failed.is_set():
                break
            storing.submit(store, batch, {site: start_storing(kept, config.dtype) for site, kept in rows_of(batch)})
            advance(len(batch.rows))
    place = _first_unfit([fits[site] for site in sites])
    if place is not None:
        batch = next(islice(batches_of(stream, shard, config.batch_tokens, model.pad_id), place[0], None))
        kept = dict(rows_of(batch))[sites[place[1]]]
        raise _named(kept, batch, stream, config.dtype, f"Model {model.name}, {sites[place[1]]}")
    return {str(site): array for site, array in stored.items()}


def _first_unfit(fits: Sequence[Sequence[Tensor]]) -> tuple[int, int] | None:
    """Number of the first batch that cannot be stored, and of its site; every site's flags are read from its device at once."""
    read = [torch.stack(list(found)).tolist() for found in fits if found]
    bad = ((number, flags.index(False)) for number, flags in enumerate(zip(*read, strict=True)) if not all(flags))
    return next(bad, None)


def _named(
    kept: Float[Tensor, "kept d_model"], batch: ForwardBatch, stream: TokenStream, dtype: StoreDtype, where: str
) -> StoreError:
    """The error of the first sequence whose values cannot be stored, with the id of that sequence."""
    start = 0
    for sample in batch.sequences:
        n_rows = int(stream.row_start[sample + 1] - stream.row_start[sample])
        try:
            to_stored(kept[start : start + n_rows], dtype)
        except StoreError as error:
            return StoreError(f"{where}, sequence {stream.sequences[sample].id!r}: {error}")
        start += n_rows
    names = ", ".join(repr(stream.sequences[sample].id) for sample in batch.sequences)
    return StoreError(
        f"{where}: an activation of the sequences {names} was not finite or too large for {dtype}, but not when the model "
        "ran on them again; check the device."
    )


@dataclass(frozen=True, slots=True)
class ModelReader:
    """The reader chosen for one model.

    Attributes:
        kind: ``bridge`` or ``plain``.
        proof: sha256 of the residuals on which both readers agree; empty where they were not compared or differ.
    """

    kind: ReaderKind
    proof: str = ""

    @property
    def residuals(self) -> ResidualsFunction:
        """The function that runs a batch."""
        return residuals_plain if self.kind == "plain" else residuals_bridge


def choose_reader(model: LanguageModel, stream: TokenStream, sites: Sequence[Site], config: CacheConfig) -> ModelReader:
    """The reader that the settings ask for, after the comparison that they require.

    Up to `N_COMPARED` batches of the first shard, from its shortest to its longest sequences, run through both readers,
    with one copy of the weights in memory at a time. A model that the bridge does not support is read by plain hooks, and
    a warning is logged; likewise where transformer-lens is not installed. Where attention is not eager, or with TF32, no bits are
    compared.

    Raises:
        ModelError: The setting is ``reader = "plain"`` and the bits differ, or it is ``"bridge"`` and attention is not eager.
    """
    if model.attention != "eager" or model.tf32:
        if config.reader == "bridge":
            raise ModelError(
                f'Model {model.name}: TransformerBridge has eager attention without TF32; set reader = "plain", or '
                'attention = "eager" and tf32 = false.'
            )
        return ModelReader("plain")
    if config.reader == "bridge":
        return ModelReader("bridge")
    batches = list(batches_of(stream, stream.shards[0], config.batch_tokens, model.pad_id))
    batches = [batches[index] for index in sorted({round(i) for i in np.linspace(0, len(batches) - 1, N_COMPARED)})]
    try:
        bridged = _kept_residuals(model, batches, sites, "bridge")
    except DependencyError as error:
        _warn_once(f"{error} The plain reader is used without a comparison of its bits with the bridge.")
        return ModelReader("plain")
    except ModelError as error:
        _ = model.hf  # weights that cannot be used end here, with one message
        text = "Model %s: residuals are read by hooks on the transformers model, because TransformerBridge cannot run it. %s"
        logger.warning(text, model.name, error)
        return ModelReader("plain")
    finally:
        model.release("bridge")
    plain = _kept_residuals(model, batches, sites, "plain")
    if all(torch.equal(one, other) for one, other in zip(bridged, plain, strict=True)):
        proof = hashlib.sha256()
        for tensor in plain:
            proof.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return ModelReader("plain", proof.hexdigest())
    most = max(float((one.double() - other.double()).abs().max()) for one, other in zip(bridged, plain, strict=True))
    model.release("hf")
    if config.reader == "plain":
        raise ModelError(
            f"Model {model.name}: the plain reader differs from TransformerBridge by up to {most:.2g}, so the store would "
            'depend on the reader; set reader = "bridge" or "auto".'
        )
    logger.warning(
        "Model %s: residuals are read through TransformerBridge, because those of the transformers model alone differ by up to %.2g.",
        model.name,
        most,
    )
    return ModelReader("bridge")


@cache
def _warn_once(text: str) -> None:
    """Log a warning that would be the same for every model."""
    logger.warning("%s", text)


def _kept_residuals(
    model: LanguageModel, batches: Sequence[ForwardBatch], sites: Sequence[Site], kind: ReaderKind
) -> list[torch.Tensor]:
    """Residuals of every unmasked token, per batch and site, on the CPU."""
    found = []
    for batch in batches:
        # Load the weights first: with a device map, the input device is known only then.
        _ = model.bridge if kind == "bridge" else model.hf
        resid = ModelReader(kind).residuals(model, batch.ids.to(model.input_device), batch.mask, sites)
        found += [resid[site].cpu()[batch.mask.bool()] for site in sites]
    return found
