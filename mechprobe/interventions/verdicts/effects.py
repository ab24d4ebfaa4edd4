"""Effects of conditions from outcomes per sample: accuracies, flip rates, tests, and shares of the ceiling."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from mechprobe.interventions.conditions.plan import Condition, condition_row
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.readout_rows import ReadoutChoice
from mechprobe.interventions.result import CollateralSource, RelativeChanges
from mechprobe.interventions.result_rows import ChangeSize, Collateral, ConditionResult, Effect, TaskEffects
from mechprobe.statistics import Interval, clustered_interval, paired_change, paired_p, share_interval, wilson_interval
from mechprobe.types import POOLED

MIN_CEILING = 0.05
"""Smallest ceiling, in accuracy, of which a share is computed; a share of a smaller one would be noise over noise."""

Right = dict[str, Bool[np.ndarray, "_sample _draw"]]
"""Task → whether each response to each sample is right, in one fixed order of samples; greedy decoding gives one draw."""


class Measurements(NamedTuple):
    """What a run measures beside the outcomes.

    ``change_of`` and ``collateral_of`` are by condition, ``doses`` by ``host|rival``; ``readout`` is None where none was chosen.
    """

    changes: RelativeChanges
    change_of: Mapping[str, ChangeSize]
    texts: CollateralSource | None
    collateral_of: Mapping[str, Collateral]
    doses: Mapping[str, float] = MappingProxyType({})
    readout: ReadoutChoice | None = None


def sign_of(model: str, config: InterveneConfig) -> float:
    """+1 in the base model, where a gain is claimed; −1 in the tuned model, where a loss is claimed."""
    return 1.0 if model == config.base else -1.0


def claimed(change: Interval | Effect, sign: float) -> Effect:
    """A change of accuracy as an effect in the claimed direction."""
    value, low, high = change[:3]
    return Effect(value, low, high) if sign > 0 else Effect(0.0 - value, 0.0 - high, 0.0 - low)  # 0 keeps no minus sign


def with_pooled(right: Right, held_out: Sequence[str]) -> Right:
    """The outcomes with a row ``pooled`` over the held-out tasks.

    A task with one draw beside tasks with several has its options compared by log-likelihood, so its draws would be equal.
    """
    parts = [right[task] for task in held_out]
    n_draws = max((part.shape[1] for part in parts), default=1)
    rows = [np.broadcast_to(part, (len(part), n_draws)) for part in parts]
    return {**right, POOLED: np.concatenate(rows) if rows else np.zeros((0, 1), dtype=bool)}


def effects_on_tasks(clean: Right, edited: Right) -> TaskEffects:
    """Effects of one condition on every task, against the clean host on the same samples."""
    pairs = {task: (before, edited[task]) for task, before in clean.items()}
    n_draws = {task: before.shape[1] for task, before in clean.items()}
    return TaskEffects(
        **({"n_draws": n_draws} if max(n_draws.values(), default=1) > 1 else {}),
        accuracy={task: share_interval(after) for task, (_, after) in pairs.items()},
        accuracy_delta={task: paired_change(*pair) for task, pair in pairs.items()},
        flip_rate_of_right={task: _flip_rate(before, ~after) for task, (before, after) in pairs.items()},
        flip_rate_of_wrong={task: _flip_rate(~before, after) for task, (before, after) in pairs.items()},
        mcnemar_p={task: paired_p(*pair) for task, pair in pairs.items()},
    )


def _flip_rate(of: Bool[np.ndarray, "sample draw"], flipped: Bool[np.ndarray, "sample draw"]) -> Interval:
    """Share of the responses ``of`` that are ``flipped``; responses are paired by draw, which has one seed in both arms."""
    flips = of & flipped
    if of.shape[1] == 1:
        return wilson_interval(int(flips.sum()), int(of.sum()))
    return clustered_interval(flips.sum(axis=1), of.sum(axis=1))


def share_of_code(code: str, text: str) -> float | None:
    """Share of one outcome code; None without samples."""
    return text.count(code) / len(text) if text else None


def _cut(codes: Mapping[str, str], held_out: Sequence[str]) -> dict[str, float | None]:
    """Task → share of cut responses, with the row ``pooled`` over the held-out tasks."""
    pooled = {**codes, POOLED: "".join(codes[task] for task in held_out)}
    return {task: share_of_code("C", text) for task, text in pooled.items()}


def shares_of_ceiling(
    delta: Mapping[str, Interval], ceiling: Mapping[str, Interval], *, sign: float
) -> dict[str, float | None]:
    """Task → change of accuracy as a share of the change that the whole-residual patch makes there.

    The share is None where the ceiling is not `measurable` in the claimed direction ``sign``, see `sign_of`.
    """
    return {
        task: row[0] / ceiling[task][0] if measurable(ceiling[task], sign=sign) else None for task, row in delta.items()
    }


def measurable(ceiling: Sequence[float | int], *, sign: float = 1.0) -> bool:
    """Whether a change ``[value, low, high, ...]`` has at least 5 points in a direction, with an interval that excludes 0."""
    value, nearest = sign * ceiling[0], min(sign * ceiling[1], sign * ceiling[2])
    return value >= MIN_CEILING and nearest > 0


def condition_results(
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    codes: Mapping[str, Mapping[str, str]],
    held_out: Sequence[str],
    config: InterveneConfig,
    measured: Measurements,
) -> list[ConditionResult]:
    """Effects of every condition that ran on all tasks, in the order of the plan.

    ``right`` and ``codes`` hold the outcomes of every condition, as truth values and as codes. The pooled row is over the tasks
    of ``held_out``.
    """
    everywhere = [condition for condition in conditions if not condition.tasks]
    pooled = {c.name: with_pooled(right[c.name], held_out) for c in everywhere}
    effects = {c.name: effects_on_tasks(pooled[f"{c.model}|clean"], pooled[c.name]) for c in everywhere}
    deltas = {name: effect.accuracy_delta for name, effect in effects.items()}
    ceilings = {c.model: deltas[c.name] for c in everywhere if c.set_kind == "ceiling"}
    return [
        ConditionResult(
            **dict(condition_row(c, config, measured.change_of)),
            donor=c.donor,
            **effects[c.name].given(),
            share_of_ceiling=shares_of_ceiling(deltas[c.name], ceilings[c.model], sign=sign_of(c.model, config)),
            unparsed={task: share_of_code("U", text) for task, text in codes[c.name].items()},
            cut=_cut(codes[c.name], held_out),
            collateral=measured.collateral_of.get(c.name),
        )
        for c in everywhere
    ]
