"""Exact distances between two next-token distributions over the whole vocabulary, position by position.

With p and q the distributions of the tuned model and of base, r = q / p, d = log p − log q, and m = (p + q) / 2, in nats:

* KL(p ‖ q) = Σ p (r − 1 − log r) = Σ (p d − p + q), and KL(q ‖ p) = Σ (−q d − q + p). Σ (q − p) is 0, but with it every term
  is at least 0, and an error of the normalization cancels in first order, so that small values are exact in float32.
* JS = ½ KL(p ‖ m) + ½ KL(q ‖ m) = ½ Σ [(p + q) log(2 / (1 + e^−|d|)) − min(p, q) |d|].
* total variation = ½ Σ |p − q|.

log p and log q are a float32 log-softmax. Sums run over blocks of the vocabulary in float32, and over blocks in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax

from mechprobe.models.head import ModelHead

_GROUP = 64
"""Neighbouring ids of which only the largest is compared at first; the ids of the largest groups are then compared."""
_BLOCK_VALUES = {"cpu": 1 << 18}
"""Values of a block of positions × ids, so that it stays in the cache of a CPU; a GPU takes large blocks."""
_CHUNK_VALUES = 1 << 25
"""Logits of one model that exist at a time, positions × vocabulary (128 MiB in float32)."""
_LEAST = -80.0
"""Smaller log-probabilities count as this one (e⁻⁸⁰ = 2e-35), because a CPU is many times slower with subnormal numbers."""


@dataclass(frozen=True)
class PositionDivergences:
    """Numbers of each position, with p of the tuned model and q of base. Distances and entropies are in nats, in float64.

    Attributes:
        kl: KL(p ‖ q), tuned to base.
        kl_reverse: KL(q ‖ p).
        js: Jensen-Shannon divergence, at most log 2.
        tv: Total variation distance, at most 1.
        agree: Whether both have the same most probable token.
        entropy, entropy_base: Entropies of p and of q.
        log_prob, log_prob_base: log p and log q of the realised token.
        rank, rank_base: Rank of the realised token under p and under q; 1 is the most probable. Equal logits share the best rank.
        raised_ids, raised: The tokens whose logit rises most from base to tuned, and by how much, largest first. Differences are
            minus their mean over the vocabulary, which softmax ignores.
        lowered_ids, lowered: The same for logits that fall most; the numbers are negative.
        outside, outside_base: Probability of ids that are not compared, before the distributions are restricted to the others.
    """

    kl: Float[Tensor, " position"]
    kl_reverse: Float[Tensor, " position"]
    js: Float[Tensor, " position"]
    tv: Float[Tensor, " position"]
    agree: Bool[Tensor, " position"]
    entropy: Float[Tensor, " position"]
    entropy_base: Float[Tensor, " position"]
    log_prob: Float[Tensor, " position"]
    log_prob_base: Float[Tensor, " position"]
    rank: Int[Tensor, " position"]
    rank_base: Int[Tensor, " position"]
    raised_ids: Int[Tensor, "position top"]
    raised: Float[Tensor, "position top"]
    lowered_ids: Int[Tensor, "position top"]
    lowered: Float[Tensor, "position top"]
    outside: Float[Tensor, " position"]
    outside_base: Float[Tensor, " position"]

    @classmethod
    def joined(cls, parts: "list[PositionDivergences]") -> "PositionDivergences":
        """The positions of several parts, one after another."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    def only(self, chosen: Bool[Tensor, " position"]) -> "PositionDivergences":
        """Some of the positions."""
        return PositionDivergences(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


@torch.no_grad()
def divergences(
    tuned: Float[Tensor, "position rows"],
    base: Float[Tensor, "position base_rows"],
    target: Int[Tensor, " position"],
    *,
    n_ids: int | None = None,
    top: int = 10,
) -> PositionDivergences:
    """Compare the logits of two models.

    Args:
        tuned: Logits of the tuned model.
        base: Logits of base at the same positions.
        target: The realised next token of each position, below ``n_ids``.
        n_ids: Number of ids that are compared; both distributions are restricted to them. By default all ids of both.
        top: Number of logits that rise most, and of those that fall most.
    """
    n_ids = min(tuned.shape[1], base.shape[1]) if n_ids is None else n_ids
    log_p, outside = _restricted(tuned, n_ids)
    log_q, outside_base = _restricted(base, n_ids)
    sums, groups = _sums(log_p, log_q)
    kl, kl_reverse, js, tv, entropy, entropy_base, shift = sums
    of_target = [part.gather(1, target[:, None]) for part in (log_p, log_q)]
    ends = [_most(log_p, log_q, groups[side], min(top, n_ids), sign) for side, sign in ((0, 1.0), (1, -1.0))]
    center = (shift / n_ids)[:, None]
    return PositionDivergences(
        kl=kl.clamp_min(0),
        kl_reverse=kl_reverse.clamp_min(0),
        js=(js / 2).clamp(0, _LOG_2),
        tv=(tv / 2).clamp(0, 1),
        agree=tuned[:, :n_ids].argmax(1) == base[:, :n_ids].argmax(1),
        entropy=entropy,
        entropy_base=entropy_base,
        log_prob=of_target[0][:, 0].double(),
        log_prob_base=of_target[1][:, 0].double(),
        rank=_rank(tuned[:, :n_ids], target),
        rank_base=_rank(base[:, :n_ids], target),
        raised_ids=ends[0][0],
        raised=ends[0][1] - center,
        lowered_ids=ends[1][0],
        lowered=ends[1][1] - center,
        outside=outside,
        outside_base=outside_base,
    )


_LOG_2 = 0.6931471805599453


def _rank(logits: Tensor, target: Tensor) -> Tensor:
    """One more than the number of logits above that of the target."""
    n, own = len(logits), logits.gather(1, target[:, None])
    above = torch.zeros(n, dtype=torch.float64, device=logits.device)
    for start, stop in _blocks(n, logits.shape[1], logits.device.type):
        part = logits[:, start:stop]
        above += torch.gt(part, own, out=torch.empty(part.shape, device=logits.device)).sum(
            1
        )  # faster than a sum of booleans
    return above.long() + 1


def _restricted(logits: Tensor, n_ids: int) -> tuple[Tensor, Tensor]:
    """Log-softmax over the first ``n_ids`` ids, and the probability of the others."""
    log_prob = log_softmax(logits[:, :n_ids].float(), dim=-1)
    outside = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    if logits.shape[1] > n_ids:
        inside = (logits[:, :1].float() - log_prob[:, :1])[:, 0].double()
        outside = (logits[:, n_ids:].double().logsumexp(1) - inside).sigmoid()
    return log_prob, outside


def _sums(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Sums over the vocabulary ``[7 position]``, and the largest and the smallest d of each group of ids ``[position group]``."""
    n, n_ids = log_p.shape
    sums = torch.zeros(7, n, dtype=torch.float64, device=log_p.device)
    ends: list[list[Tensor]] = [[], []]
    for start, stop in _blocks(n, n_ids, log_p.device.type):
        lp, lq = log_p[:, start:stop], log_q[:, start:stop]
        p, q, d = lp.clamp_min(_LEAST).exp(), lq.clamp_min(_LEAST).exp(), lp - lq
        for largest, side in zip(_group_ends(d), ends, strict=True):
            side.append(largest)
        moved, size = q - p, d.abs()
        wide = -torch.log1p(torch.expm1(-size).div_(2))
        sums[2] += wide.mul_(p + q).sub_(size.mul_(torch.minimum(p, q))).sum(1)
        sums[3] += moved.abs().sum(1)
        sums[4] -= lp.mul(p).sum(1)
        sums[5] -= lq.mul(q).sum(1)
        sums[6] += d.sum(1)
        sums[0] += p.mul_(d).add_(moved).sum(1)
        sums[1] -= q.mul_(d).add_(moved).sum(1)
    return sums, [torch.cat(side, dim=1) for side in ends]


def _blocks(n: int, n_ids: int, device: str) -> Iterator[tuple[int, int]]:
    """Ranges of ids; every border is a multiple of the group size."""
    width = max(1, _BLOCK_VALUES.get(device, 1 << 26) // max(1, n) // _GROUP) * _GROUP
    return ((start, min(start + width, n_ids)) for start in range(0, n_ids, width))


def _group_ends(d: Tensor) -> tuple[Tensor, Tensor]:
    whole = d.shape[1] // _GROUP * _GROUP
    grouped = d[:, :whole].unflatten(1, (-1, _GROUP)) if whole else d[:, :0, None]
    most, least = grouped.amax(-1), grouped.amin(-1)
    if whole < d.shape[1]:
        most = torch.cat([most, d[:, whole:].amax(1, keepdim=True)], dim=1)
        least = torch.cat([least, d[:, whole:].amin(1, keepdim=True)], dim=1)
    return most, least


def _most(log_p: Tensor, log_q: Tensor, ends: Tensor, top: int, sign: float) -> tuple[Tensor, Tensor]:
    """Ids and values of the ``top`` largest ``sign`` × (log p − log q) of each position."""
    n_ids = log_p.shape[1]
    groups = (sign * ends).topk(min(top, ends.shape[1])).indices
    ids = (groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=log_p.device)).flatten(1)
    known = ids.clamp_max(n_ids - 1)
    value = sign * (log_p.gather(1, known) - log_q.gather(1, known))
    found = value.masked_fill(ids >= n_ids, -torch.inf).topk(top)
    return ids.gather(1, found.indices), (sign * found.values).double()


def chunks(n: int, n_rows: int, values: int = _CHUNK_VALUES) -> Iterator[slice]:
    """Ranges of positions whose logits over ``n_rows`` ids have at most ``values`` values."""
    size = max(1, values // n_rows)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@torch.no_grad()
def hidden_divergences(
    tuned: ModelHead,
    base: ModelHead,
    hidden: Float[Tensor, "position width"],
    base_hidden: Float[Tensor, "position base_width"],
    target: Int[Tensor, " position"],
    *,
    n_ids: int,
    top: int = 10,
    chunk_values: int = _CHUNK_VALUES,
) -> PositionDivergences:
    """`divergences` from the inputs of both unembeddings; the logits of at most ``chunk_values`` / ``n_ids`` positions exist at a time.

    The result is on the CPU.
    """
    parts = []
    for part in chunks(len(target), n_ids, chunk_values):
        logits = tuned.logits(hidden[part])
        reference = base.logits(base_hidden[part]).to(logits.device)
        found = divergences(logits, reference, target[part].to(logits.device), n_ids=n_ids, top=top)
        parts.append(PositionDivergences(**{field.name: getattr(found, field.name).cpu() for field in fields(found)}))
    return PositionDivergences.joined(parts)
