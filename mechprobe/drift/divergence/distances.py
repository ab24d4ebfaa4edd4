"""Exact distances between two next-token distributions over the whole vocabulary, position by position.

With p and q the distributions of the tuned model and of base, r = q / p, d = log p − log q, and m = (p + q) / 2, in nats:

* KL(p ‖ q) = Σ p (r − 1 − log r) = Σ (p d − p + q), and KL(q ‖ p) = Σ (−q d − q + p). Σ (q − p) is 0, but with it every term
  is at least 0, and an error of the normalization cancels in first order, so that small values are exact in float32.
* JS = ½ KL(p ‖ m) + ½ KL(q ‖ m) = ½ Σ [(p + q) log(2 / (1 + e^−|d|)) − min(p, q) |d|].
* total variation = ½ Σ |p − q|.

Values of single ids are float32, and sums over the vocabulary are float64. The log of the normalization, log Z, is float64,
because its rounding would shift the log-probabilities of a position all alike. It is a float32 part c and a float64 rest ε. With
l = logit − c, P = eˡ, Q the same of base, D = l − l_base and t = ε_base − ε, and so p = e^−ε P and d = D + t:

* KL(p ‖ q) = e^−ε Σ (P D − P + Q) − (eᵗ − 1 − t), where Q − P = ±(1 − e^−|D|) max(P, Q), so that no term is negative and
  rounding of P is relative to D.
* Entropy of p = −e^−ε Σ P l + ε.
* JS takes D for d, since it has no term of first order in t.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechprobe.errors import InputError
from mechprobe.models.head import Head

_GROUP = 64
"""Neighbouring ids of which only the largest is compared at first; the ids of the largest groups are then compared."""
_BLOCK_VALUES = {"cpu": 1 << 18}
"""Values of a block of positions × ids, so that it stays in the cache of a CPU; a GPU takes large blocks."""
_CHUNK_VALUES = 1 << 25
"""Logits of one model that exist at a time, positions × vocabulary (128 MiB in float32)."""
_STEP = 2.0**-20
"""c is a multiple of it, as are all logits above 8, so that their float32 difference is exact while it is below 16."""
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

    def not_finite(self) -> tuple[int, int] | None:
        """Model (0 tuned, 1 base) and position of the first logit that is NaN or infinite, if there is one."""
        of_model = ((self.entropy, self.outside), (self.entropy_base, self.outside_base))
        wrong = torch.stack([~(entropy + outside).isfinite() for entropy, outside in of_model])
        first = wrong.T.nonzero()[:1].tolist()
        return (first[0][1], first[0][0]) if first else None


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
        n_ids: Number of ids that are compared; both distributions are restricted to them. By default the ids below the
            smaller of both widths, ``min(rows, base_rows)``.
        top: Number of logits that rise most, and of those that fall most.

    Raises:
        InputError: A logit is NaN or infinite. Logits of −∞ are taken only where ids from ``n_ids`` on have them.
    """
    n_ids = min(tuned.shape[1], base.shape[1]) if n_ids is None else n_ids
    found = compared(tuned, base, target, n_ids=n_ids, top=top)
    wrong = found.not_finite()
    if wrong is not None:
        side, position = wrong
        raise InputError(_where(("base" if side else "tuned"), (base if side else tuned)[position], position, n_ids))
    return found


def _where(name: str, row: Tensor, position: int, n_ids: int) -> str:
    """The sentence about logits of a position that are not finite."""
    start = f"Logits of the {name} model are not finite at position {position}"
    bad = ~row.float().isfinite()
    bad[n_ids:] &= row[n_ids:] != -torch.inf
    wrong = torch.nonzero(bad).flatten().tolist()
    place = f", id {wrong[0]} ({float(row[wrong[0]])})" if wrong else " (they lie more than 3e38 apart)"
    return f"{start}{place}; give the logits before any mask, or leave ids out by n_ids."


def compared(tuned: Tensor, base: Tensor, target: Tensor, *, n_ids: int, top: int) -> PositionDivergences:
    """`divergences` without the error: a position with a logit that is not finite has an entropy that is not finite."""
    p, q = _Side.of(tuned, n_ids), _Side.of(base, n_ids)
    sums, groups = _sums(p, q)
    kl, kl_reverse, js, tv, entropy, entropy_base, shift = sums
    ends = [_most(p, q, groups[side], min(top, n_ids), sign) for side, sign in ((0, 1.0), (1, -1.0))]
    center = (shift / n_ids)[:, None]
    return PositionDivergences(
        kl=kl.clamp_min(0),
        kl_reverse=kl_reverse.clamp_min(0),
        js=(js / 2).clamp(0, _LOG_2),
        tv=(tv / 2).clamp(0, 1),
        agree=p.logits.argmax(1) == q.logits.argmax(1),
        entropy=entropy,
        entropy_base=entropy_base,
        log_prob=p.log_prob(target[:, None])[:, 0],
        log_prob_base=q.log_prob(target[:, None])[:, 0],
        rank=_rank(p.logits, target),
        rank_base=_rank(q.logits, target),
        raised_ids=ends[0][0],
        raised=ends[0][1] - center,
        lowered_ids=ends[1][0],
        lowered=ends[1][1] - center,
        outside=p.outside,
        outside_base=q.outside,
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


@dataclass(frozen=True)
class _Side:
    """Logits of the ids that are compared, and what normalizes them.

    Attributes:
        logits: Logits ``[position id]``.
        c, rest: The float32 part of log Z and the float64 rest.
        outside: Probability of the other ids.
    """

    logits: Tensor
    c: Tensor
    rest: Tensor
    outside: Tensor

    @classmethod
    def of(cls, logits: Tensor, n_ids: int) -> "_Side":
        inside, beyond = logits[:, :n_ids], logits[:, n_ids:]
        log_z = _log_sum_exp(inside)
        c = (log_z.div(_STEP).round() * _STEP).float()
        outside = torch.zeros_like(log_z)
        if beyond.shape[1]:
            other = beyond.double().logsumexp(1)
            outside = (other - log_z).sigmoid().masked_fill(other == torch.inf, torch.nan)
        return cls(inside, c, log_z - c.double(), outside)

    def log_prob(self, ids: Tensor) -> Tensor:
        """Log-probabilities of some ids ``[position id]`` in float64."""
        return self.logits.gather(1, ids).double() - (self.c.double() + self.rest)[:, None]

    def block(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The l and eˡ of a range of ids."""
        shifted = self.logits[:, start:stop].float() - self.c[:, None]
        return shifted, shifted.clamp_min(_LEAST).exp_()

    @property
    def scale(self) -> Tensor:
        """e^−ε in float64."""
        return self.rest.neg().exp()


def _log_sum_exp(logits: Tensor) -> Tensor:
    """The log Σ eˣ of each position in float64."""
    n, n_ids = logits.shape
    most = logits.amax(1, keepdim=True).float()
    total = torch.zeros(n, dtype=torch.float64, device=logits.device)
    for start, stop in _blocks(n, n_ids, logits.device.type):
        total += _total((logits[:, start:stop].float() - most).clamp_min_(_LEAST).exp_())
    return most[:, 0].double() + total.log()


def _total(values: Tensor) -> Tensor:
    """Sums of the rows in float64; those of `_GROUP` neighbours are float32, which is several times faster."""
    whole = values.shape[1] // _GROUP * _GROUP
    rest = values[:, whole:].double().sum(1)
    return values[:, :whole].unflatten(1, (-1, _GROUP)).sum(-1).double().sum(1) + rest if whole else rest


def _sums(p_side: _Side, q_side: _Side) -> tuple[Tensor, list[Tensor]]:
    """Sums over the vocabulary ``[7 position]``, and the largest and the smallest d of each group of ids ``[position group]``."""
    n, n_ids = p_side.logits.shape
    sums = torch.zeros(7, n, dtype=torch.float64, device=p_side.c.device)
    ends: list[list[Tensor]] = [[], []]
    scales = [side.scale.float()[:, None] for side in (p_side, q_side)]
    for start, stop in _blocks(n, n_ids, p_side.c.device.type):
        (lp, p), (lq, q) = p_side.block(start, stop), q_side.block(start, stop)
        d = lp - lq
        for largest, side in zip(_group_ends(d), ends, strict=True):
            side.append(largest)
        size = d.abs()
        less = torch.expm1(-size)
        moved = torch.maximum(p, q).mul_(less).copysign_(d).neg_()  # Q - P, without the rounding of exp
        sums[0] += _total((p * d).add_(moved))
        sums[1] -= _total((q * d).add_(moved))
        sums[4] -= _total(lp.mul_(p))
        sums[5] -= _total(lq.mul_(q))
        sums[6] += _total(d)
        p, q, wide = p.mul_(scales[0]), q.mul_(scales[1]), less.div_(2).log1p_().neg_()
        sums[2] += _total(wide.mul_(p + q).sub_(size.mul_(torch.minimum(p, q))))
        sums[3] += _total(q.sub_(p).abs_())
    t = q_side.rest - p_side.rest
    sums[0] = sums[0] * p_side.scale - (t.expm1() - t)
    sums[1] = sums[1] * q_side.scale - ((-t).expm1() + t)
    sums[4] = sums[4] * p_side.scale + p_side.rest
    sums[5] = sums[5] * q_side.scale + q_side.rest
    sums[6] += t * n_ids
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


def _most(p: _Side, q: _Side, ends: Tensor, top: int, sign: float) -> tuple[Tensor, Tensor]:
    """Ids and values of the ``top`` largest ``sign`` × (log p − log q) of each position."""
    n_ids = p.logits.shape[1]
    groups = (sign * ends).topk(min(top, ends.shape[1])).indices
    ids = (groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=ends.device)).flatten(1)
    known = ids.clamp_max(n_ids - 1)
    value = sign * (p.log_prob(known) - q.log_prob(known))
    found = value.masked_fill(ids >= n_ids, -torch.inf).topk(top)
    return ids.gather(1, found.indices), sign * found.values


def chunks(n: int, n_rows: int, values: int = _CHUNK_VALUES) -> Iterator[slice]:
    """Ranges of positions whose logits over ``n_rows`` ids have at most ``values`` values."""
    size = max(1, values // n_rows)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@torch.no_grad()
def hidden_divergences(
    tuned: Head,
    base: Head,
    hidden: Float[Tensor, "position width"],
    base_hidden: Float[Tensor, "position base_width"],
    target: Int[Tensor, " position"],
    *,
    n_ids: int,
    top: int = 10,
    chunk_values: int = _CHUNK_VALUES,
) -> PositionDivergences:
    """`divergences` from the inputs of both unembeddings; the logits of at most ``chunk_values`` / ``n_ids`` positions exist at a time.

    The result is on the CPU. No logit is refused; ask `PositionDivergences.not_finite`.
    """
    parts = []
    for part in chunks(len(target), n_ids, chunk_values):
        logits = tuned.logits(hidden[part])
        reference = base.logits(base_hidden[part]).to(logits.device)
        found = compared(logits, reference, target[part].to(logits.device), n_ids=n_ids, top=top)
        parts.append(PositionDivergences(**{field.name: getattr(found, field.name).cpu() for field in fields(found)}))
    return PositionDivergences.joined(parts)
