"""How attention is computed: eager attention, with the queries of long sequences in chunks, or a fused kernel.

Eager attention is the reference: TransformerBridge gives its bits. Its scores ``[head, query, key]`` grow with the square of the
length, so above `MOST_SCORES` they are made for a part of the queries at a time. Each part is the model's own eager attention on
these queries, with its rows of the mask. Fused kernels (sdpa, flash) round differently; `differences` measures by how much.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from mechprobe.errors import MechprobeError, ModelError, first_line, is_out_of_memory
from mechprobe.models.architectures import is_exact
from mechprobe.models.blocks import find_blocks, forward_inputs, recording
from mechprobe.models.devices import input_device
from mechprobe.progress import tell_once
from mechprobe.types import Site

MOST_SCORES = 1 << 25
"""Scores of a batch that exist together: 128 MiB in float32, 1,024 tokens of a model with 32 heads. Their softmax takes as much again."""
LIMITS = {torch.float32: 1e-4}
"""Largest difference from eager attention, relative to the norm of the residual, that is accepted; 0.05 in 16 bits (ours)."""
CHUNKED = "mechprobe_eager"
KINDS = {"eager": CHUNKED, "sdpa": "sdpa", "flash": "flash_attention_2"}
"""Values of the setting ``attention``, and their names in transformers."""
_FEWEST = 16
"""Queries in a part, at least; matrix products with fewer than four rows have other last bits on a CPU."""
N_PROBED = 64
_most_scores = MOST_SCORES


@dataclass(frozen=True)
class _LateMask:
    """The mask of long sequences, of which rows are made when they are needed."""

    make: partial[Tensor]
    n_keys: int
    offset: Any

    def rows(self, start: int, stop: int) -> Float[Tensor, "batch 1 query key"]:
        return self.make(q_length=stop - start, q_offset=self.offset + start)


def _mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, *, config: Any, **options: Any
) -> Tensor | _LateMask | None:
    """The mask of eager attention, or for long sequences one that is made in rows."""
    make = partial(eager_mask, batch_size=batch_size, kv_length=kv_length, config=config, **options)
    few = batch_size * config.num_attention_heads * q_length * kv_length <= _most_scores
    if few or options.get("allow_is_bidirectional_skip"):  # then there may be no mask
        return make(q_length=q_length, q_offset=q_offset)
    return _LateMask(make, kv_length, q_offset)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The model's own eager attention, on some of the queries at a time where the mask is late."""
    eager: Any = sys.modules[type(module).__module__].eager_attention_forward  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(attention_mask, _LateMask):
        return eager(module, query, key, value, attention_mask, **options)

    def part(queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        mask = attention_mask.rows(start, start + queries.shape[2]).to(queries.device)
        return eager(module, queries, keys, values, mask, **options)[0]

    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        part = partial(checkpoint, part, use_reentrant=False)
    size = max(_FEWEST, _most_scores // (query.shape[0] * query.shape[1] * attention_mask.n_keys))
    start, found = 0, []
    for queries in query.tensor_split(-(-query.shape[2] // size), dim=2):
        found.append(part(queries, key, value, start))
        start += queries.shape[2]
    return torch.cat(found, dim=1), None


AttentionInterface.register(CHUNKED, _attend)  # pyright: ignore[reportArgumentType]
AttentionMaskInterface.register(CHUNKED, _mask)  # pyright: ignore[reportArgumentType]


@contextmanager
def at_most(scores: int) -> Iterator[None]:
    """Another number of scores in place of `MOST_SCORES` inside the ``with`` block."""
    global _most_scores
    before, _most_scores = _most_scores, scores
    try:
        yield
    finally:
        _most_scores = before


def takes_chunks(model: PreTrainedModel) -> bool:
    """Whether a model's attention gives on queries in chunks what it gives at once; measured for architectures not known to be exact."""
    if is_exact(model.config):
        return not getattr(model.config, "reorder_and_upcast_attn", False)
    try:
        found = differences(model, ["eager"])["eager"]
    except MechprobeError:
        return False
    return not found > limit(model)


def differences(model: PreTrainedModel, kinds: Sequence[str]) -> dict[str, float]:
    """How far residuals under other kinds of attention are from those under whole eager attention.

    Two rows of random tokens are read, one of them with padding on the left.

    Args:
        model: Plain transformers model, without edits in force.
        kinds: Of `KINDS`; ``eager`` takes the queries in chunks of 16.

    Returns:
        Kind to the largest ‖difference‖ / ‖residual‖ over positions and sites.

    Raises:
        ModelError: The model does not run with a kind of attention.
    """
    before = str(model.config._attn_implementation)
    try:
        expected = _residuals(model, "eager")
        found = {}
        for kind in kinds:
            with at_most(1):
                found[kind] = _largest(_residuals(model, KINDS[kind], kind), expected)
        return found
    finally:
        _set(model, before)


def _largest(found: Tensor, expected: Tensor) -> float:
    change = (found.double() - expected.double()).norm(dim=-1)
    norm = expected.double().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return float((change / norm).max())


@torch.no_grad()
def _residuals(model: PreTrainedModel, name: str, kind: str = "eager") -> Float[Tensor, "site token d_model"]:
    """Residuals of the probe's unmasked tokens after every block."""
    device, generator = input_device(model), torch.Generator().manual_seed(0)
    weight: Any = model.get_input_embeddings().weight
    top = min(int(model.config.get_text_config().vocab_size), int(weight.shape[0]))
    length = min(N_PROBED, int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or N_PROBED))
    ids = torch.randint(min(4, top - 1), top, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, : length // 3] = 0
    sites = [Site(layer) for layer in range(len(find_blocks(model)))]
    try:
        _set(model, name)
        with recording(model, sites) as resid:
            model(input_ids=ids.to(device), **forward_inputs(model, mask, device=device))
    except MechprobeError:
        raise
    except Exception as error:  # noqa: BLE001 - kernels and models raise many types
        _refuse(model, kind, error)
    return torch.stack([resid[site].cpu()[mask.bool()] for site in sites])


def _set(model: PreTrainedModel, name: str) -> None:
    """Set the kind of attention by the name that transformers has for it."""
    if name == model.config._attn_implementation:
        return
    if not model._can_set_attn_implementation():  # otherwise transformers logs a warning and changes nothing
        raise ModelError(
            f"{model.config.model_type} models have no other attention than their own; set attention = 'eager'."
        )
    model.set_attn_implementation(name)


def _refuse(model: PreTrainedModel, kind: str, error: Exception) -> NoReturn:
    if is_out_of_memory(error):
        raise error
    raise ModelError(
        f"{type(model).__name__} does not run with {kind} attention ({first_line(error)}); set attention = 'eager'."
    ) from None


def limit(model: PreTrainedModel) -> float:
    """The entry of `LIMITS` for the dtype of a model."""
    return LIMITS.get(model.dtype, 0.05)


def settle(model: PreTrainedModel, kind: str, role: str) -> None:
    """Set the kind of attention of a model that was just loaded.

    Eager attention takes long sequences in chunks of queries, unless the architecture is none of those that were found exact and
    `takes_chunks` finds a difference.

    Raises:
        ModelError: The kind is not eager, and residuals move by more than `LIMITS`.
    """
    if kind != "eager":
        found = differences(model, [kind])[kind]
        if not found <= limit(model):
            raise ModelError(
                f"Model {role}: {kind} attention moves residuals by up to {found:.2g} of their norm, more than "
                f"{limit(model):g}; set attention = 'eager'."
            )
    elif takes_chunks(model):
        _set(model, CHUNKED)
    else:
        tell_once(
            f"{model.config.model_type} models cannot have their attention in parts; its memory grows with the square of the length."
        )
