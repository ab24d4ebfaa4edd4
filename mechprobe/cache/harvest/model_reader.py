"""How the residuals of a model are read: through TransformerBridge, or faster, by hooks on the transformers model.

Both give the same bits for most architectures. Where the bridge splits fused weights (GPT-2, BLOOM), the last bits of
float32 differ. The bytes of a store must not depend on the reader, so plain hooks are used only after they have given
the bits of the bridge on batches of the same token stream.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.forward_batches import ForwardBatch, ResidualsFunction, batches_of
from mechprobe.data.stream import TokenStream
from mechprobe.errors import ModelError
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_bridge, residuals_plain
from mechprobe.types import Site

logger = logging.getLogger(__name__)

N_COMPARED = 4
"""Number of forward batches on which both readers are compared."""

ReaderKind = Literal["bridge", "plain"]


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
    a warning is logged.

    Raises:
        ModelError: The setting is ``reader = "plain"`` and the bits differ.
    """
    if config.reader == "bridge":
        return ModelReader("bridge")
    batches = list(batches_of(stream, stream.shards[0], config.batch_tokens, int(str(model.tokenizer.pad_token_id))))
    batches = [batches[index] for index in sorted({round(i) for i in np.linspace(0, len(batches) - 1, N_COMPARED)})]
    try:
        bridged = _kept_residuals(model, batches, sites, "bridge")
    except ModelError as error:
        logger.warning("%s The plain reader is used, and its bits could not be compared with the bridge.", error)
        return ModelReader("plain")
    finally:
        model.release("bridge")
    plain = _kept_residuals(model, batches, sites, "plain")
    if all(torch.equal(one, other) for one, other in zip(bridged, plain, strict=True)):
        return ModelReader("plain", _digest(plain))
    most = max(float((one.double() - other.double()).abs().max()) for one, other in zip(bridged, plain, strict=True))
    model.release("hf")
    if config.reader == "plain":
        raise ModelError(
            f"Model {model.name}: the plain reader differs from TransformerBridge by up to {most:.2g}, so the store would "
            'depend on the reader; set reader = "bridge" or "auto".'
        )
    logger.warning(
        "Model %s: the plain reader differs from TransformerBridge by up to %.2g; the bridge is used.", model.name, most
    )
    return ModelReader("bridge")


def _kept_residuals(
    model: LanguageModel, batches: Sequence[ForwardBatch], sites: Sequence[Site], kind: ReaderKind
) -> list[torch.Tensor]:
    """Residuals of every unmasked token, per batch and site, on the CPU."""
    found = []
    for batch in batches:
        # Load the weights first: with a device map, the input device is known only then.
        _ = model.bridge if kind == "bridge" else model.hf
        ids, mask = batch.ids.to(model.input_device), batch.mask.to(model.input_device)
        resid = ModelReader(kind).residuals(model, ids, mask, sites)
        found += [resid[site].cpu()[batch.mask.bool()] for site in sites]
    return found


def _digest(tensors: Sequence[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
