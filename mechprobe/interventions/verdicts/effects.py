"""Effects of conditions from outcomes per sample: accuracies, flip rates, tests, and shares of the ceiling."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mechprobe.interventions.condition_result import Collateral, ConditionResult
from mechprobe.interventions.conditions.condition import Condition
from mechprobe.statistics import Interval, mcnemar_exact, paired_bootstrap, wilson_interval
from mechprobe.types import POOLED

MIN_CEILING = 0.05
"""Smallest ceiling, in accuracy, of which a share is computed; a share of a smaller one would be noise over noise."""

Right = dict[str, list[bool]]
"""Task → whether each sample is right, in one fixed order of samples."""


class TaskEffects(NamedTuple):
    """One condition against the clean host; every mapping is by task. `ConditionResult` describes the fields."""

    accuracy: dict[str, Interval]
    accuracy_delta: dict[str, Interval]
    flip_rate_of_right: dict[str, Interval]
    flip_rate_of_wrong: dict[str, Interval]
    mcnemar_p: dict[str, float]


class Extras(NamedTuple):
    """What is known of a condition beside its outcomes; the fields are those of `ConditionResult`."""

    readout: str | None = None
    unparsed: dict[str, float | None] | None = None
    collateral: Collateral | None = None
    relative_change: float | None = None


def with_pooled(right: Right, held_out: Sequence[str]) -> Right:
    """The outcomes with a row ``pooled`` over the held-out tasks."""
    return {**right, POOLED: [value for task in held_out for value in right[task]]}


def effects_on_tasks(clean: Right, edited: Right, *, seed: int) -> TaskEffects:
    """Effects of one condition on every task, against the clean host on the same samples.

    Accuracies and flip rates have Wilson intervals, changes of accuracy have paired percentile bootstrap intervals.

    Args:
        clean: Outcomes of the clean host.
        edited: Outcomes under the condition.
        seed: Seed of the bootstrap.
    """
    found = TaskEffects({}, {}, {}, {}, {})
    for task, before in clean.items():
        after = edited[task]
        lost = sum(b and not a for b, a in zip(before, after, strict=True))
        gained = sum(a and not b for b, a in zip(before, after, strict=True))
        found.accuracy[task] = wilson_interval(sum(after), len(after))
        found.accuracy_delta[task] = paired_bootstrap(before, after, seed=seed)
        found.flip_rate_of_right[task] = wilson_interval(lost, sum(before))
        found.flip_rate_of_wrong[task] = wilson_interval(gained, len(before) - sum(before))
        found.mcnemar_p[task] = mcnemar_exact(before, after)
    return found


def shares_of_ceiling(
    delta: Mapping[str, Interval], ceiling: Mapping[str, Interval], *, sign: float
) -> dict[str, float | None]:
    """Change of accuracy on each task as a share of the change that the whole-residual patch makes there.

    Args:
        delta: Task → change under the condition.
        ceiling: Task → change under the patch.
        sign: +1 where a gain is claimed, −1 where a loss is claimed.

    Returns:
        Task → share, or None where the ceiling is not `measurable` in the claimed direction.
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
    *,
    held_out: Sequence[str],
    base: str,
    seed: int,
    extras: Mapping[str, Extras] | None = None,
) -> list[ConditionResult]:
    """Effects of every condition that ran on all tasks, in the order of the plan.

    Args:
        conditions: The plan.
        right: Condition name → outcomes.
        held_out: Tasks that enter the pooled row.
        base: The model in which a gain is claimed; in the other model a loss is claimed.
        seed: Seed of the bootstrap.
        extras: Condition name → what is known beside the outcomes.
    """
    everywhere = [condition for condition in conditions if not condition.tasks]
    pooled = {c.name: with_pooled(right[c.name], held_out) for c in everywhere}
    effects = {c.name: effects_on_tasks(pooled[f"{c.model}|clean"], pooled[c.name], seed=seed) for c in everywhere}
    ceilings = {c.model: effects[c.name].accuracy_delta for c in everywhere if c.set_kind == "ceiling"}
    return [
        _result(c, effects[c.name], ceilings[c.model], 1.0 if c.model == base else -1.0, (extras or {}).get(c.name))
        for c in everywhere
    ]


def _result(
    condition: Condition, effects: TaskEffects, ceiling: Mapping[str, Interval], sign: float, extras: Extras | None
) -> ConditionResult:
    known = extras or Extras()
    return ConditionResult(
        name=condition.name,
        model=condition.model,
        edit=condition.edit,
        features=condition.features,
        set_kind=condition.set_kind,
        donor=condition.donor,
        draw=condition.draw,
        n_features=len(condition.ids),
        **effects._asdict(),
        share_of_ceiling=shares_of_ceiling(effects.accuracy_delta, ceiling, sign=sign),
        readout=known.readout,
        unparsed=known.unparsed or {},
        collateral=known.collateral,
        relative_change=known.relative_change,
    )
