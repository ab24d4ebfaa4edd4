"""Numbers of an update that do not depend on how its entries are arranged, summed block by block."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

_MANTISSA = 8
"""Significant bits of bfloat16, the leading one included."""
_LEAST_EXPONENT = -125
"""Exponent, as `torch.frexp` counts, of the smallest normal bfloat16."""


@dataclass
class EntryTotals:
    """Sums over the entries of an update.

    Attributes:
        visible_in: Dtype in which an update that no file holds, that of an adapter, would be stored; None where both models
            are stored.
    """

    visible_in: torch.dtype | None = None
    n: int = 0
    largest: float = 0.0
    base_square: float = 0.0
    powers: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])
    unchanged: int = 0
    below_bf16: int = 0
    flipped: int = 0

    def add(self, weight: Tensor, update: Tensor) -> None:
        """Count a block of W and ΔW."""
        update = update.double()
        self.n += update.numel()
        self.largest = max(self.largest, update.abs().max().item())
        self.base_square += weight.double().square().sum().item()
        power = torch.ones_like(update)
        for place in range(4):
            power = power * update
            self.powers[place] += power.sum().item()
        tuned = weight + update
        same = update == 0 if self.visible_in is None else tuned.to(self.visible_in) == weight.to(self.visible_in)
        self.unchanged += int(same.sum())
        self.below_bf16 += int((update.abs() < half_ulp(weight)).sum())
        self.flipped += int((torch.sign(weight) * torch.sign(tuned) < 0).sum())

    def numbers(self) -> dict[str, float]:
        """The numbers of a row of `mechprobe.drift.weights.result.WeightsResult.to_pandas`."""
        norm, base_norm = math.sqrt(self.powers[1]), math.sqrt(self.base_square)
        return {
            "norm": norm,
            "base_norm": base_norm,
            "relative_norm": norm / base_norm if base_norm else math.nan,
            "max_abs": self.largest,
            "unchanged": self.unchanged / self.n,
            "below_bf16": self.below_bf16 / self.n,
            "sign_flips": self.flipped / self.n,
            "kurtosis": self._kurtosis(),
        }

    def _kurtosis(self) -> float:
        """Fourth central moment over the squared variance (3 for a Gaussian); NaN if all entries are equal."""
        m1, m2, m3, m4 = (total / self.n for total in self.powers)
        variance = m2 - m1**2
        if variance <= 1e-12 * m2:
            return math.nan
        return (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2


def half_ulp(weight: Tensor) -> Tensor:
    """Half the distance of neighbouring bfloat16 numbers at each entry: a smaller update may vanish when it is stored."""
    exponent = torch.frexp(weight.double()).exponent.clamp(min=_LEAST_EXPONENT)
    return torch.ldexp(torch.ones_like(weight, dtype=torch.float64), exponent - (_MANTISSA + 1))
