"""Log-probabilities of tokens, their gradients, and divergences, from the input of the unembedding.

This is the one place where a whole row of next-token probabilities is computed for a loss. Logits exist for `CHUNK_VALUES` values at
a time, in the dtype of the model, and are computed again in the backward pass. Their softmax exists for `BLOCK_VALUES` values at a
time, in float64 unless asked otherwise. Memory therefore depends neither on the number of positions nor, beyond one row, on the
vocabulary. Every row is normalized by itself, so chunks and blocks do not change its bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import kl_div

from mechprobe.memory import even_ranges
from mechprobe.models.head import Head

CHUNK_VALUES = 1 << 24
"""Logits that exist at a time, positions × vocabulary: 64 MiB in float32. The backward pass has as large a slope, and the work of the
unembedding beside it."""
BLOCK_VALUES = {"cpu": 1 << 18}
"""Values of a block of rows in float64, at least one row; they stay in the cache of a CPU. A GPU takes `_LARGE_BLOCK`."""
_LARGE_BLOCK = 1 << 22


def token_log_probs(
    head: Head, hidden: Float[Tensor, "position width"], target: Int[Tensor, " position"]
) -> Float[Tensor, " position"]:
    """Log-probability of one token at each position, in nats and float64; it has a gradient with respect to ``hidden``.

    Args:
        head: The model's way from states to logits.
        hidden: States, as `Head.states` gives them.
        target: The token whose log-probability is wanted.
    """
    return _TokenLogProbs.apply(hidden, target, head)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Compared:
    """A distribution q compared with the reference p at each position, in nats.

    Attributes:
        kl: KL(p ‖ q).
        log_prob: log q of the realised token.
        change: log q − log p of the realised token.
    """

    kl: Float[Tensor, " position"]
    log_prob: Float[Tensor, " position"]
    change: Float[Tensor, " position"]


@torch.no_grad()
def compared_with(
    head: Head,
    reference: Float[Tensor, "position width"],
    others: Sequence[Float[Tensor, "position width"]],
    target: Int[Tensor, " position"],
    *,
    dtype: torch.dtype = torch.float64,
) -> list[Compared]:
    """Compare the distributions that several states of one model give with those of the reference.

    Args:
        head: The model's way from states to logits.
        reference: States of the reference.
        others: States at the same positions.
        target: The realised token of each position.
        dtype: Of the log-probabilities of a block and of the result. float32 takes a half to a quarter of the time.
    """
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in others]
    for chunk, logits in _chunks(head, reference):
        wanted = target[chunk].to(logits.device)
        for found, other in zip(parts, others, strict=True):
            own = logits if other is reference else head.logits(other[chunk])
            found += [_compared(own[rows], logits[rows], wanted[rows], dtype) for rows in _blocks(logits)]
    return [Compared(*map(torch.cat, zip(*found, strict=True))) for found in parts]


def _compared(logits: Tensor, reference: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, p = logits.to(dtype).log_softmax(-1), reference.to(dtype).log_softmax(-1)
    own, before = (each.gather(1, target[:, None])[:, 0] for each in (q, p))
    return kl_div(q, p, log_target=True, reduction="none").sum(-1), own, own - before


class _TokenLogProbs(torch.autograd.Function):
    """`token_log_probs`; the backward pass makes the logits of each chunk again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target: Tensor, head: Head) -> Tensor:
        ctx.save_for_backward(hidden, target)
        ctx.head = head
        found = []
        for chunk, logits in _chunks(head, hidden):
            wanted = target[chunk, None].to(logits.device)
            found += [logits[rows].double().log_softmax(-1).gather(1, wanted[rows])[:, 0] for rows in _blocks(logits)]
        return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        hidden, target = ctx.saved_tensors
        (grad,) = grads
        found = torch.zeros_like(hidden)
        for chunk in even_ranges(len(hidden), _rows_of_chunk(ctx.head, hidden)):
            with torch.enable_grad():
                own = hidden[chunk].detach().requires_grad_()
                logits = ctx.head.logits(own)
            slope = _slope(logits.detach(), target[chunk].to(logits.device), grad[chunk].to(logits.device))
            (found[chunk],) = torch.autograd.grad(logits, own, slope)
        return found, None, None


def _slope(logits: Tensor, target: Tensor, grad: Tensor) -> Tensor:
    """Gradient of Σ grad · log p(target) with respect to the logits: grad · (1 at the target − p)."""
    slope = torch.empty_like(logits)
    for rows in _blocks(logits):
        part = logits[rows].double().log_softmax(-1).exp_().mul_(-grad[rows, None])
        part.scatter_add_(1, target[rows, None], grad[rows, None])
        slope[rows] = part.to(slope.dtype)
    return slope


def _chunks(head: Head, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of positions with their logits."""
    for chunk in even_ranges(len(hidden), _rows_of_chunk(head, hidden)):
        yield chunk, head.logits(hidden[chunk])


def _rows_of_chunk(head: Head, hidden: Tensor) -> int:
    return max(1, CHUNK_VALUES // head.n_logits(hidden.shape[-1])) if len(hidden) else 1


def _blocks(logits: Tensor) -> Iterator[slice]:
    values = BLOCK_VALUES.get(logits.device.type, _LARGE_BLOCK)
    return even_ranges(len(logits), max(1, values // logits.shape[-1]))
