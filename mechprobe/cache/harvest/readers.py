"""Which way a model is read: through TransformerBridge, or, faster, by a hook on the plain transformers model.

Both give the same bits for most architectures; where the bridge splits fused weights (GPT-2, BLOOM) they differ in the
last bits of float32. The bytes of a store must not depend on the way, so the plain one is taken only after it has given the
bridge's bits on batches of the very stream that is to be read.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.forward_batches import ForwardBatch, ReadResiduals, batches_of
from mechprobe.data.stream import TokenStream
from mechprobe.errors import ModelError
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_bridge, residuals_plain
from mechprobe.types import Site

logger = logging.getLogger(__name__)

N_COMPARED = 4
"""Forward batches that are read both ways."""

Way = Literal["bridge", "plain"]


@dataclass(frozen=True, slots=True)
class Reader:
    """The way chosen for one model.

    Attributes:
        way: ``bridge`` or ``plain``.
        proof: sha256 of the residuals in which both ways agreed; empty where they were not compared, or differ.
    """

    way: Way
    proof: str = ""

    @property
    def read(self) -> ReadResiduals:
        """The function that reads a batch."""
        return residuals_plain if self.way == "plain" else residuals_bridge


def choose_reader(model: LanguageModel, stream: TokenStream, sites: Sequence[Site], config: CacheConfig) -> Reader:
    """The way to read ``model``: that of the settings, after the comparison that it asks for.

    Up to `N_COMPARED` batches of the first shard, from its shortest sequences to its longest, are read both ways, one
    copy of the weights in memory at a time. A model that the bridge cannot take is read the plain way, and this is logged.

    Raises:
        ModelError: ``reader = "plain"``, and the bits differ.
    """
    if config.reader == "bridge":
        return Reader("bridge")
    batches = list(batches_of(stream, stream.shards[0], config.batch_tokens, int(str(model.tokenizer.pad_token_id))))
    batches = [batches[index] for index in sorted({round(i) for i in np.linspace(0, len(batches) - 1, N_COMPARED)})]
    try:
        bridged = _read(model, batches, sites, "bridge")
    except ModelError as error:
        logger.warning("%s It is read by hooks on the plain model, which nothing could be compared with.", error)
        return Reader("plain")
    finally:
        model.release("bridge")
    plain = _read(model, batches, sites, "plain")
    if all(torch.equal(one, other) for one, other in zip(bridged, plain, strict=True)):
        return Reader("plain", _digest(plain))
    most = max(float((one.double() - other.double()).abs().max()) for one, other in zip(bridged, plain, strict=True))
    model.release("hf")
    if config.reader == "plain":
        raise ModelError(
            f"Model {model.name}: the plain reader differs from TransformerBridge by up to {most:.2g}, so that the store "
            'would depend on the reader; take reader = "bridge", or "auto".'
        )
    logger.warning(
        "Model %s: the plain reader differs from TransformerBridge by up to %.2g; it is read through the bridge.",
        model.name,
        most,
    )
    return Reader("bridge")


def _read(model: LanguageModel, batches: Sequence[ForwardBatch], sites: Sequence[Site], way: Way) -> list[torch.Tensor]:
    """Residuals of every unmasked token, per batch and site, on the CPU."""
    found = []
    for batch in batches:
        # The weights first: with a device map, where the ids go is known only then.
        _ = model.bridge if way == "bridge" else model.hf
        resid = Reader(way).read(model, batch.ids.to(model.input_device), batch.mask.to(model.input_device), sites)
        found += [resid[site].cpu()[batch.mask.bool()] for site in sites]
    return found


def _digest(tensors: Sequence[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
