"""What ``mechprobe weights`` would read, and about how long it would take: a short probe of this machine, extrapolated."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mechprobe.drift.weights.compared import Comparison
from mechprobe.drift.weights.config import WeightsConfig
from mechprobe.drift.weights.entries import EntryTotals
from mechprobe.drift.weights.nulls import n_draws
from mechprobe.drift.weights.sketch import LANCZOS_STEPS, OVERSAMPLING, POWER_ITERATIONS, PROBES
from mechprobe.drift.weights.stored import BLOCK, View

_SIDE = 384
"""Side of the probed matrices."""


@dataclass(frozen=True)
class WeightsPlan:
    """Sizes and time of a weights stage.

    Attributes:
        weights: Vectors and matrices of base.
        parameters: Their entries.
        bytes: Model → bytes of its whole weights or of its adapter.
        exact: Matrices with exact singular values.
        estimated: Matrices whose singular values are estimated.
        seconds: Estimated time.
        memory: Estimated peak of the memory, in bytes, beside the program itself.
    """

    weights: int
    parameters: int
    bytes: dict[str, int]
    exact: int
    estimated: int
    seconds: float
    memory: int


def plan_weights(compared: Comparison, config: WeightsConfig) -> WeightsPlan:
    """Plan the comparison of opened models."""
    views = [compared.view(name) for name in compared.names]
    matrices = [view for view in views if len(view.shape) == 2]
    exact = [view for view in matrices if view.short <= config.exact_up_to]
    rates, n = _Rates.measured(), len(compared.tuned)
    models = (compared.base, *compared.tuned.values())
    return WeightsPlan(
        weights=len(views),
        parameters=sum(view.n for view in views),
        bytes={model.role: sum(view.n * view.dtype.itemsize for view in model.own_views()) for model in models},
        exact=len(exact),
        estimated=len(matrices) - len(exact),
        seconds=sum(_seconds(view, n, config, rates) for view in views),
        memory=max((_memory(view, n, config) for view in views), default=0),
    )


@dataclass(frozen=True)
class _Rates:
    """Seconds of one multiplication and addition in a matrix product, of an eigendecomposition of side 1, and per entry."""

    product: float
    eigen: float
    entry: float

    @classmethod
    def measured(cls) -> "_Rates":
        square = torch.randn(_SIDE, _SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        symmetric = square @ square.T
        return cls(
            _timed(lambda: square @ square) / _SIDE**3,
            _timed(lambda: torch.linalg.eigh(symmetric)) / _SIDE**3,
            _timed(lambda: EntryTotals().add(square, square)) / _SIDE**2,
        )


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the fastest of three calls."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def _seconds(view: View, n: int, config: WeightsConfig, rates: _Rates) -> float:
    """Time of one weight in ``n`` models."""
    entries = view.n * n * rates.entry * (1 + n / 8)  # the products of pairs are cheaper than the other numbers
    if len(view.shape) == 1:
        return entries
    draws = n_draws(view.short, config.null_draws)
    if view.short <= config.exact_up_to:
        products = view.n * view.short * (1 + 2 * n + 2 * draws)
        return entries + products * rates.product + view.short**3 * (1 + 2 * n + draws * (n + 1)) * rates.eigen
    columns = config.top_k + OVERSAMPLING
    passes = (POWER_ITERATIONS + 1) * columns * (1 + n * (2 + draws)) + LANCZOS_STEPS * PROBES * (n + draws)
    return entries + 2 * view.n * passes * rates.product


def _memory(view: View, n: int, config: WeightsConfig) -> int:
    """Bytes of one weight: blocks, Gram matrices and the left vectors of every update."""
    if len(view.shape) == 1:
        return 8 * 8 * min(view.n, BLOCK)
    blocks = 8 * 8 * min(view.n, BLOCK)
    vectors = 8 * config.top_k * (view.long + view.short) * (n if n > 1 else 0)
    draws = n_draws(view.short, config.null_draws)
    square = 8 * view.short**2 * (8 + 3 * draws) if view.short <= config.exact_up_to else 3 * 4 * view.n
    return blocks + vectors + square
