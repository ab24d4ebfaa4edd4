"""What ``mechprobe weights`` would read, and about how long it would take: a short probe of this machine, extrapolated."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mechprobe.drift.weights.compared import Comparison
from mechprobe.drift.weights.config import WeightsConfig
from mechprobe.drift.weights.decompositions import HELD
from mechprobe.drift.weights.entries import EntryTotals
from mechprobe.drift.weights.nulls import n_draws
from mechprobe.drift.weights.sketch import LANCZOS_STEPS, OVERSAMPLING, POWER_ITERATIONS, PROBES, normal
from mechprobe.drift.weights.stored import BLOCK, View

_SIDE, _SHORT = 384, 1024
"""Side of the probed matrices, and smaller side of the probed block."""


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
    rates, n = _Rates.measured(config), len(compared.tuned)
    models = (compared.base, *compared.tuned.values())
    return WeightsPlan(
        weights=len(views),
        parameters=sum(view.n for view in views),
        bytes={model.role: sum(view.n * view.dtype.itemsize for view in model.own_views()) for model in models},
        exact=len(exact),
        estimated=len(matrices) - len(exact),
        seconds=sum(_seconds(view, n, config, rates) for view in views) + _random_seconds(views, config, rates),
        memory=max((_memory(view, n, config) for view in views), default=0),
    )


@dataclass(frozen=True)
class _Rates:
    """Seconds on this machine.

    Attributes:
        product: One multiplication and addition in a matrix product.
        eigen: An eigendecomposition of side 1.
        entry: The numbers of an entry.
        wide, narrow: Per entry, one reading of a matrix for its first singular vectors, and one for the probes.
        made: An entry of an update that is read from its files once more.
        drawn: An entry of a random update that is drawn once more.
    """

    product: float
    eigen: float
    entry: float
    wide: float
    narrow: float
    made: float
    drawn: float

    @classmethod
    def measured(cls, config: WeightsConfig) -> "_Rates":
        square = torch.randn(_SIDE, _SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        symmetric = square @ square.T
        return cls(
            _timed(lambda: square @ square) / _SIDE**3,
            _timed(lambda: torch.linalg.eigh(symmetric)) / _SIDE**3,
            _timed(lambda: EntryTotals().add(square, square)) / _SIDE**2,
            *_readings(config.top_k + OVERSAMPLING),
        )


def _readings(columns: int) -> tuple[float, float, float, float]:
    """Seconds per entry of `_Rates.wide`, ``narrow``, ``made`` and ``drawn``, on one block."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(max(1, BLOCK // _SHORT), _SHORT, generator=generator)
    stored = block.bfloat16()
    readings = [
        _timed(lambda n=n: normal(lambda: [block], torch.ones(_SHORT, n, dtype=torch.float64)))
        for n in (columns, PROBES)
    ]
    made = _timed(lambda: stored.float() - stored.float())
    drawn = _timed(lambda: torch.randn(block.shape, generator=generator).double())
    wide, narrow, again, random = (seconds / block.numel() for seconds in (*readings, made, drawn))
    return wide, narrow, again, random


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
    # Readings for first vectors: of base, of every update, and of base with every update and random one; one more for its norm.
    known = (POWER_ITERATIONS + 1) * (1 + 2 * n) + 2 * n
    random = (POWER_ITERATIONS + 2) * n * draws
    steps = LANCZOS_STEPS * n
    reading = (known + random) * rates.wide + steps * rates.narrow
    if view.n > HELD:
        reading += (known + steps + random) * rates.made + random * rates.drawn
    return entries + view.n * reading


def _random_seconds(views: Sequence[View], config: WeightsConfig, rates: _Rates) -> float:
    """Time of the random updates alone, which matrices of one shape share, where their singular values are estimated."""
    shapes = {(view.long, view.short) for view in views if len(view.shape) == 2 and view.short > config.exact_up_to}
    each = (POWER_ITERATIONS + 1) * (rates.wide + rates.drawn) + LANCZOS_STEPS * (rates.narrow + rates.drawn)
    return math.fsum(long * short * n_draws(short, config.null_draws) * each for long, short in shapes)


def _memory(view: View, n: int, config: WeightsConfig) -> int:
    """Bytes of one weight: blocks, Gram matrices and the left vectors of every update."""
    if len(view.shape) == 1:
        return 8 * 8 * min(view.n, BLOCK)
    blocks = 8 * 8 * min(view.n, BLOCK)
    vectors = 8 * config.top_k * (view.long + view.short) * (n if n > 1 else 0)
    draws = n_draws(view.short, config.null_draws)
    if view.short <= config.exact_up_to:
        return blocks + vectors + 8 * view.short**2 * (8 + 3 * draws)
    # Base, an update and a random one in float32; of a larger matrix, the pages of base's file and of one other.
    return blocks + vectors + (3 * 4 * view.n if view.n <= HELD else 2 * view.n * view.dtype.itemsize)
