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

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechprobe.errors import InputError
from mechprobe.models.head import Head
from mechprobe.models.next_token import CHUNK_VALUES, GROUP, NextToken, chunks, id_blocks, rank_of, row_totals


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
    p, q = NextToken.of(tuned, n_ids), NextToken.of(base, n_ids)
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
        rank=rank_of(p.logits, target),
        rank_base=rank_of(q.logits, target),
        raised_ids=ends[0][0],
        raised=ends[0][1] - center,
        lowered_ids=ends[1][0],
        lowered=ends[1][1] - center,
        outside=p.outside,
        outside_base=q.outside,
    )


_LOG_2 = 0.6931471805599453


def _sums(p_side: NextToken, q_side: NextToken) -> tuple[Tensor, list[Tensor]]:
    """Sums over the vocabulary ``[7 position]``, and the largest and the smallest d of each group of ids ``[position group]``."""
    n, n_ids = p_side.logits.shape
    sums = torch.zeros(7, n, dtype=torch.float64, device=p_side.c.device)
    ends: list[list[Tensor]] = [[], []]
    scales = [side.scale.float()[:, None] for side in (p_side, q_side)]
    for start, stop in id_blocks(n, n_ids, p_side.c.device.type):
        (lp, p), (lq, q) = p_side.block(start, stop), q_side.block(start, stop)
        d = lp - lq
        for largest, side in zip(_group_ends(d), ends, strict=True):
            side.append(largest)
        size = d.abs()
        less = torch.expm1(-size)
        moved = torch.maximum(p, q).mul_(less).copysign_(d).neg_()  # Q - P, without the rounding of exp
        sums[0] += row_totals((p * d).add_(moved))
        sums[1] -= row_totals((q * d).add_(moved))
        sums[4] -= row_totals(lp.mul_(p))
        sums[5] -= row_totals(lq.mul_(q))
        sums[6] += row_totals(d)
        p, q, wide = p.mul_(scales[0]), q.mul_(scales[1]), less.div_(2).log1p_().neg_()
        sums[2] += row_totals(wide.mul_(p + q).sub_(size.mul_(torch.minimum(p, q))))
        sums[3] += row_totals(q.sub_(p).abs_())
    t = q_side.rest - p_side.rest
    sums[0] = sums[0] * p_side.scale - (t.expm1() - t)
    sums[1] = sums[1] * q_side.scale - ((-t).expm1() + t)
    sums[4] = sums[4] * p_side.scale + p_side.rest
    sums[5] = sums[5] * q_side.scale + q_side.rest
    sums[6] += t * n_ids
    return sums, [torch.cat(side, dim=1) for side in ends]


def _group_ends(d: Tensor) -> tuple[Tensor, Tensor]:
    whole = d.shape[1] // GROUP * GROUP
    grouped = d[:, :whole].unflatten(1, (-1, GROUP)) if whole else d[:, :0, None]
    most, least = grouped.amax(-1), grouped.amin(-1)
    if whole < d.shape[1]:
        most = torch.cat([most, d[:, whole:].amax(1, keepdim=True)], dim=1)
        least = torch.cat([least, d[:, whole:].amin(1, keepdim=True)], dim=1)
    return most, least


def _most(p: NextToken, q: NextToken, ends: Tensor, top: int, sign: float) -> tuple[Tensor, Tensor]:
    """Ids and values of the ``top`` largest ``sign`` × (log p − log q) of each position."""
    n_ids = p.logits.shape[1]
    groups = (sign * ends).topk(min(top, ends.shape[1])).indices
    ids = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=ends.device)).flatten(1)
    known = ids.clamp_max(n_ids - 1)
    value = sign * (p.log_prob(known) - q.log_prob(known))
    found = value.masked_fill(ids >= n_ids, -torch.inf).topk(top)
    return ids.gather(1, found.indices), sign * found.values


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
    chunk_values: int = CHUNK_VALUES,
) -> PositionDivergences:
    """`divergences` from the inputs of both unembeddings, of which each makes about ``chunk_values`` logits at a time.

    A vocabulary can have many more rows than the ``n_ids`` that are compared.

    The result is on the CPU. No logit is refused; ask `PositionDivergences.not_finite`.
    """
    parts = []
    n_rows = max(tuned.n_logits(hidden.shape[1]), base.n_logits(base_hidden.shape[1]))
    for part in chunks(len(target), n_rows, chunk_values):
        logits = tuned.logits(hidden[part])
        reference = base.logits(base_hidden[part]).to(logits.device)
        found = compared(logits, reference, target[part].to(logits.device), n_ids=n_ids, top=top)
        parts.append(PositionDivergences(**{field.name: getattr(found, field.name).cpu() for field in fields(found)}))
    return PositionDivergences.joined(parts)
