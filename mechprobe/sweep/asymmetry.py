"""Whether reasoning and safety move apart: the path of every checkpoint in the plane of reasoning gain and attack success.

The index is h(reasoning) − h(safety). h is Cohen's h, 2 arcsin √p₁ − 2 arcsin √p₀ (Cohen 1988): of the accuracy, averaged over the
reasoning benchmarks, and of the share of attacks that fail. It is positive where reasoning gains more than safety does, for
example where reasoning rises and safety falls. arXiv 2604.06628 claims the direction only; the index is ours.

The contrast of two arms is the difference of their indices on the same items. Base cancels in it, so it is the index of one model with
the other in the place of base, and it has an interval over items that is paired.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.statistics import Interval
from mechprobe.sweep.registry import ALLOWED
from mechprobe.sweep.result import BenchmarkInfo, CellResult, SafetyContrast, SafetyPath, SafetyPoint

_DRAWS = 2000
Cells = Mapping[str, CellResult]
"""Model → its cell on one benchmark."""


def safety_paths(
    found: Mapping[str, Cells],
    base: str,
    *,
    seed: int,
    arms: Mapping[str, Sequence[str]] | None = None,
    steps: Mapping[str, int | None] | None = None,
) -> dict[str, SafetyPath]:
    """Safety benchmark → path, for those whose metric is the share of attacks that succeed, beside at least one of reasoning.

    A stand-in is set beside stand-ins only, and real data beside real data.

    Args:
        found: Benchmark → model → cell.
        base: Model before post-training.
        seed: Seed of the bootstrap.
        arms: Arm → its models in order, for the contrasts between arms.
        steps: Model → step, so that arms are compared at equal steps, too.
    """
    infos = {name: next(iter(row.values())).benchmark for name, row in found.items()}
    paths = {}
    for name, info in infos.items():
        if (
            info.group != "safety"
            or info.higher_is_better
            or not info.share
            or name == ALLOWED
            or base not in found[name]
        ):
            continue
        reasoning = [other for other in infos if _is_reasoning(infos[other], info) and base in found[other]]
        models = [m for m in found[name] if m != base and all(m in found[other] for other in reasoning)]
        if reasoning and models:
            points = {
                model: _point([found[other] for other in reasoning], found[name], base, model, seed) for model in models
            }
            beside = [found[other] for other in reasoning]
            contrasts = [
                SafetyContrast(
                    model=one, against=other, step=step, **_point(beside, found[name], other, one, seed).model_dump()
                )
                for one, other, step in _pairs(points, arms or {}, steps or {})
            ]
            paths[name] = SafetyPath(reasoning=reasoning, points=points, contrasts=contrasts)
    return paths


def _pairs(
    models: Mapping[str, SafetyPoint], arms: Mapping[str, Sequence[str]], steps: Mapping[str, int | None]
) -> Iterator[tuple[str, str, int | None]]:
    """The pairs of models of two arms: those at equal steps, and the last ones (without a step)."""
    kept = {arm: [model for model in own if model in models] for arm, own in arms.items()}
    for first, second in combinations((own for own in kept.values() if own), 2):
        at = {steps[model]: model for model in second[:-1] if steps.get(model)}
        yield from ((model, at[steps[model]], steps[model]) for model in first[:-1] if steps.get(model) in at)
        yield first[-1], second[-1], None


def _is_reasoning(info: BenchmarkInfo, safety: BenchmarkInfo) -> bool:
    return info.group in ("id_reasoning", "ood_reasoning") and info.share and info.standin == safety.standin


class _Shares(NamedTuple):
    """Shares of base and of a model: first in the data, then in every bootstrap sample of the items."""

    before: Float[ndarray, " drawn"]
    after: Float[ndarray, " drawn"]
    n: int

    @property
    def change(self) -> Float[ndarray, " drawn"]:
        """The model's share minus that of base."""
        return self.after - self.before


def _point(reasoning: Sequence[Cells], safety: Cells, base: str, model: str, seed: int) -> SafetyPoint:
    gains = [_shares(cells[base], cells[model], seed) for cells in reasoning]
    attacks = _shares(safety[base], safety[model], seed)
    n = min(attacks.n, *(each.n for each in gains))
    reasoned = np.mean([_h(each.before, each.after) for each in gains], axis=0)
    return SafetyPoint(
        reasoning_gain=_interval(np.mean([each.change for each in gains], axis=0), n),
        attack_change=_interval(attacks.change, attacks.n),
        index=_interval(reasoned - _h(1 - attacks.before, 1 - attacks.after), n),
    )


def _shares(base: CellResult, cell: CellResult, seed: int) -> _Shares:
    """Shares over the items that both have; all models of a benchmark share the bootstrap samples."""
    before, after = base.per_item, cell.per_item
    shared = [item for item in after if item in before]
    if not shared:
        nan = np.full(1 + _DRAWS, np.nan)
        return _Shares(nan, nan, 0)
    pairs = np.array([[before[item], after[item]] for item in shared])
    rng = np.random.default_rng([seed, *cell.benchmark.name.encode()])
    drawn = [pairs[rng.integers(0, len(pairs), len(pairs))].mean(axis=0) for _ in range(_DRAWS)]
    means = np.array([pairs.mean(axis=0), *drawn])
    return _Shares(means[:, 0], means[:, 1], len(pairs))


def _h(before: Float[ndarray, " drawn"], after: Float[ndarray, " drawn"]) -> Float[ndarray, " drawn"]:
    """Cohen's h of two shares."""
    first, second = (np.arcsin(np.sqrt(np.clip(share, 0.0, 1.0))) for share in (before, after))
    return 2 * (second - first)


def _interval(values: Float[ndarray, " drawn"], n: int) -> Interval:
    """The first value, with the percentile interval of the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high), n)
