"""Effects of conditions from outcomes per sample: accuracies, flip rates, tests, and shares of the ceiling."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mechprobe.interventions.conditions.condition import Condition, condition_row
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import CollateralSource, RelativeChanges
from mechprobe.interventions.result_rows import Collateral, ConditionResult
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


class Measurements(NamedTuple):
    """What is measured beside the outcomes.

    Attributes:
        changes: How relative changes were measured.
        change_of: Condition → relative change.
        texts: The texts behind the collateral, or None.
        collateral_of: Condition → collateral.
    """

    changes: RelativeChanges
    change_of: Mapping[str, float]
    texts: CollateralSource | None
    collateral_of: Mapping[str, Collateral]


def sign_of(model: str, config: InterveneConfig) -> float:
    """+1 in the base model, where a gain is claimed; −1 in the tuned model, where a loss is claimed."""
    return 1.0 if model == config.base else -1.0


def with_pooled(right: Right, held_out: Sequence[str]) -> Right:
    """The outcomes with a row ``pooled`` over the held-out tasks."""
    return {**right, POOLED: [value for task in held_out for value in right[task]]}


def effects_on_tasks(clean: Right, edited: Right, *, seed: int) -> TaskEffects:
    """Effects of one condition on every task, against the clean host on the same samples.

    Accuracies and flip rates have Wilson intervals. Changes of accuracy have paired percentile bootstrap intervals, drawn with
    ``seed``.
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
    unparsed: Mapping[str, dict[str, float | None]],
    held_out: Sequence[str],
    config: InterveneConfig,
    measured: Measurements,
) -> list[ConditionResult]:
    """Effects of every condition that ran on all tasks, in the order of the plan.

    Args:
        conditions: The plan.
        right: Condition name → outcomes.
        unparsed: Condition name → task → share of unparsed responses.
        held_out: Tasks that enter the pooled row.
        config: Settings.
        measured: What is known beside the outcomes.
    """
    everywhere = [condition for condition in conditions if not condition.tasks]
    pooled = {c.name: with_pooled(right[c.name], held_out) for c in everywhere}
    effects = {
        c.name: effects_on_tasks(pooled[f"{c.model}|clean"], pooled[c.name], seed=config.seed) for c in everywhere
    }
    ceilings = {c.model: effects[c.name].accuracy_delta for c in everywhere if c.set_kind == "ceiling"}
    return [
        ConditionResult(
            **dict(condition_row(c, config, measured.change_of)),
            donor=c.donor,
            **effects[c.name]._asdict(),
            share_of_ceiling=shares_of_ceiling(
                effects[c.name].accuracy_delta, ceilings[c.model], sign=sign_of(c.model, config)
            ),
            unparsed=unparsed.get(c.name, {}),
            collateral=measured.collateral_of.get(c.name),
        )
        for c in everywhere
    ]
