"""The next-token distribution of a model from its logits, normalized in float64: log-probabilities, entropy and rank.

Values of single ids are float32, and sums over the vocabulary are float64. Logits exist for a few positions at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUP = 64
"""Neighbouring ids of which only the largest is compared at first; the ids of the largest groups are then compared."""
_BLOCK_VALUES = {"cpu": 1 << 18}
"""Values of a block of positions × ids, so that it stays in the cache of a CPU; a GPU takes large blocks."""
CHUNK_VALUES = 1 << 25
"""Logits of one model that exist at a time, positions × vocabulary (128 MiB in float32)."""
_STEP = 2.0**-20
"""c is a multiple of it, as are all logits above 8, so that their float32 difference is exact while it is below 16."""
_LEAST = -80.0
"""Smaller log-probabilities count as this one (e⁻⁸⁰ = 2e-35), because a CPU is many times slower with subnormal numbers."""


@dataclass(frozen=True)
class NextToken:
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
    def of(cls, logits: Tensor, n_ids: int) -> "NextToken":
        """The distribution over the ids below ``n_ids``, from logits ``[position id]``."""
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

    def entropy(self) -> Tensor:
        """Entropy of each position in nats, in float64: −e^−ε Σ P l + ε."""
        n, n_ids = self.logits.shape
        total = torch.zeros(n, dtype=torch.float64, device=self.c.device)
        for start, stop in id_blocks(n, n_ids, self.c.device.type):
            shifted, p = self.block(start, stop)
            total -= row_totals(shifted.clamp_min_(_LEAST).mul_(p))
        return total * self.scale + self.rest

    @property
    def scale(self) -> Tensor:
        """e^−ε in float64."""
        return self.rest.neg().exp()


def _log_sum_exp(logits: Tensor) -> Tensor:
    """The log Σ eˣ of each position in float64."""
    n, n_ids = logits.shape
    most = logits.amax(1, keepdim=True).float()
    total = torch.zeros(n, dtype=torch.float64, device=logits.device)
    for start, stop in id_blocks(n, n_ids, logits.device.type):
        total += row_totals((logits[:, start:stop].float() - most).clamp_min_(_LEAST).exp_())
    return most[:, 0].double() + total.log()


def row_totals(values: Tensor) -> Tensor:
    """Sums of the rows in float64; those of `GROUP` neighbours are float32, which is several times faster."""
    whole = values.shape[1] // GROUP * GROUP
    rest = values[:, whole:].double().sum(1)
    return values[:, :whole].unflatten(1, (-1, GROUP)).sum(-1).double().sum(1) + rest if whole else rest


def rank_of(logits: Tensor, target: Tensor) -> Tensor:
    """One more than the number of logits above that of the target."""
    n, own = len(logits), logits.gather(1, target[:, None])
    above = torch.zeros(n, dtype=torch.float64, device=logits.device)
    for start, stop in id_blocks(n, logits.shape[1], logits.device.type):
        part = logits[:, start:stop]
        above += torch.gt(part, own, out=torch.empty(part.shape, device=logits.device)).sum(
            1
        )  # faster than a sum of booleans
    return above.long() + 1


def id_blocks(n: int, n_ids: int, device: str) -> Iterator[tuple[int, int]]:
    """Ranges of ids; every border is a multiple of the group size."""
    width = max(1, _BLOCK_VALUES.get(device, 1 << 26) // max(1, n) // GROUP) * GROUP
    return ((start, min(start + width, n_ids)) for start in range(0, n_ids, width))


def chunks(n: int, n_rows: int, values: int = CHUNK_VALUES) -> Iterator[slice]:
    """Ranges of positions whose logits over ``n_rows`` ids have at most ``values`` values."""
    size = max(1, values // n_rows)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class TokenNumbers(NamedTuple):
    """Numbers of the realised token of each position, and of the distribution that it was drawn from.

    Attributes:
        log_prob: Log-probability of the token in nats, in float64; the normalization runs over all logits.
        entropy: Entropy of the distribution in nats, in float64.
        rank: One more than the number of ids with a larger logit.
    """

    log_prob: Float[Tensor, " position"]
    entropy: Float[Tensor, " position"]
    rank: Int[Tensor, " position"]


@torch.no_grad()
def token_numbers(
    logits: Float[Tensor, "position vocab"], target: Int[Tensor, " position"], *, temperature: float = 1.0
) -> TokenNumbers:
    """Log-probability, entropy and rank of given tokens under ``softmax(logits / temperature)``.

    The log-probability is not finite where a logit is NaN or +∞, or that of the token −∞.

    Args:
        logits: Logits over the whole vocabulary; single ids may have −∞.
        target: The token of each position.
        temperature: Temperature of the distribution, above 0.
    """
    logits = logits if temperature == 1.0 else logits.float() / temperature
    side = NextToken.of(logits, logits.shape[1])
    return TokenNumbers(side.log_prob(target[:, None])[:, 0], side.entropy(), rank_of(logits, target))
