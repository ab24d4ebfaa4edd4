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
    found = [Compared(*torch.empty(3, len(reference), dtype=dtype, device=reference.device)) for _ in others]
    room = _Room(3, dtype)
    for chunk, logits in logit_chunks(head, reference):
        wanted = target[chunk].to(logits.device)
        for compared, other in zip(found, others, strict=True):
            own = logits if other is reference else head.logits(other[chunk])
            for rows in _blocks(logits):
                place = slice(chunk.start + rows.start, chunk.start + rows.stop)
                _compare(own[rows], logits[rows], wanted[rows], room, compared, place)
            del own
        del logits  # before the next chunk is made
    return found


def _compare(logits: Tensor, reference: Tensor, target: Tensor, room: "_Room", found: Compared, place: slice) -> None:
    """Write what a block of rows gives to its place."""
    cast, q, p = room.of(logits)
    torch.log_softmax(cast.copy_(logits), -1, out=q)
    torch.log_softmax(cast.copy_(reference), -1, out=p)
    own, before = (each.gather(1, target[:, None])[:, 0] for each in (q, p))
    found.log_prob[place] = own
    found.change[place] = own - before
    found.kl[place] = torch.sub(p, q, out=cast).mul_(p.exp_()).sum(-1)


class _TokenLogProbs(torch.autograd.Function):
    """`token_log_probs`; the backward pass makes the logits of each chunk again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target: Tensor, head: Head) -> Tensor:
        ctx.save_for_backward(hidden, target)
        ctx.head = head
        found, room = hidden.new_empty(len(hidden), dtype=torch.float64), _Room(2, torch.float64)
        for chunk, logits in logit_chunks(head, hidden):
            wanted = target[chunk, None].to(logits.device)
            for rows in _blocks(logits):
                cast, normalized = room.of(logits[rows])
                torch.log_softmax(cast.copy_(logits[rows]), -1, out=normalized)
                found[chunk.start + rows.start : chunk.start + rows.stop] = normalized.gather(1, wanted[rows])[:, 0]
            del logits
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        hidden, target = ctx.saved_tensors
        (grad,) = grads
        found, room = torch.zeros_like(hidden), _Room(2, torch.float64)
        for chunk in even_ranges(len(hidden), _rows_of_chunk(ctx.head, hidden)):
            with torch.enable_grad():
                own = hidden[chunk].detach().requires_grad_()
                logits = ctx.head.logits(own)
            slope = _slope(logits.detach(), target[chunk].to(logits.device), grad[chunk].to(logits.device), room)
            (found[chunk],) = torch.autograd.grad(logits, own, slope)
            del logits, slope
        return found, None, None


def _slope(logits: Tensor, target: Tensor, grad: Tensor, room: "_Room") -> Tensor:
    """Gradient of Σ grad · log p(target) with respect to the logits: grad · (1 at the target − p)."""
    slope = torch.empty_like(logits)
    for rows in _blocks(logits):
        cast, part = room.of(logits[rows])
        torch.log_softmax(cast.copy_(logits[rows]), -1, out=part)
        part.exp_().mul_(-grad[rows, None])
        part.scatter_add_(1, target[rows, None], grad[rows, None])
        slope[rows] = part.to(slope.dtype)
    return slope


def logit_chunks(
    head: Head, hidden: Float[Tensor, "position width"]
) -> Iterator[tuple[slice, Float[Tensor, "part vocab"]]]:
    """Yield ranges of positions with their logits, `CHUNK_VALUES` at a time; delete each before the next is made."""
    for chunk in even_ranges(len(hidden), _rows_of_chunk(head, hidden)):
        yield chunk, head.logits(hidden[chunk])


def _rows_of_chunk(head: Head, hidden: Tensor) -> int:
    return max(1, CHUNK_VALUES // head.n_logits(hidden.shape[-1])) if len(hidden) else 1


def _blocks(logits: Tensor) -> Iterator[slice]:
    values = BLOCK_VALUES.get(logits.device.type, _LARGE_BLOCK)
    return even_ranges(len(logits), max(1, values // logits.shape[-1]))


class _Room:
    """Memory for blocks of rows, which every block uses again.

    A new tensor for each block would be as fast, but glibc before 2.38 rarely puts an aligned tensor where one of its size was, so
    that the process would grow with the number of blocks.
    """

    def __init__(self, n_parts: int, dtype: torch.dtype) -> None:
        self._n_parts, self._dtype = n_parts, dtype
        self._values: Tensor | None = None

    def of(self, rows: Float[Tensor, "row token"]) -> tuple[Tensor, ...]:
        """Uninitialized tensors of the shape of a block."""
        if self._values is None or self._values.device != rows.device or self._values.shape[1] < rows.numel():
            self._values = torch.empty(self._n_parts, rows.numel(), dtype=self._dtype, device=rows.device)
        return tuple(values[: rows.numel()].view(rows.shape) for values in self._values)
