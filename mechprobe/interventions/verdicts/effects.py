"""From outcomes per sample to effects: accuracies, flips with named denominators, shares of the ceiling, tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.interventions.conditions.conditions import Condition
from mechprobe.statistics import mcnemar_exact, paired_bootstrap, wilson_interval
from mechprobe.types import POOLED

MIN_CEILING = 0.05
"""A share of a ceiling smaller than this (in accuracy), or whose interval holds 0, is not computed: it would be noise over noise."""

Right = dict[str, list[bool]]
"""Task → whether each sample is right, in one fixed order of samples."""


def with_pooled(right: Right, held_out: Sequence[str]) -> Right:
    """The same with a row ``pooled`` over the held-out tasks."""
    return {**right, POOLED: [value for task in held_out for value in right[task]]}


def effect_rows(clean: Right, edited: Right, *, seed: int) -> dict[str, dict[str, Any]]:
    """Measures of one condition against the clean host, each by task.

    Returns:
        ``accuracy`` and the two flip rates as ``[value, low, high, n]`` (Wilson), ``accuracy_delta`` likewise (paired
        bootstrap), ``mcnemar_p``. ``flip_rate_of_right`` is over the samples the clean host has right, and
        ``flip_rate_of_wrong`` over those it has wrong.
    """
    rows: dict[str, dict[str, Any]] = {
        name: {} for name in ("accuracy", "accuracy_delta", "flip_rate_of_right", "flip_rate_of_wrong", "mcnemar_p")
    }
    for task, before in clean.items():
        after = edited[task]
        lost = sum(b and not a for b, a in zip(before, after, strict=True))
        gained = sum(a and not b for b, a in zip(before, after, strict=True))
        rows["accuracy"][task] = list(wilson_interval(sum(after), len(after)))
        rows["accuracy_delta"][task] = list(paired_bootstrap(before, after, seed=seed))
        rows["flip_rate_of_right"][task] = list(wilson_interval(lost, sum(before)))
        rows["flip_rate_of_wrong"][task] = list(wilson_interval(gained, len(before) - sum(before)))
        rows["mcnemar_p"][task] = mcnemar_exact(before, after)
    return rows


def shares_of_ceiling(
    delta: Mapping[str, Sequence[float | int]], ceiling: Mapping[str, Sequence[float | int]], *, sign: float
) -> dict[str, Any]:
    """Accuracy change as a share of the whole-residual patch's, by task.

    None where the ceiling has no `measurable` size in the claimed direction (``sign``).
    """
    return {
        task: row[0] / ceiling[task][0] if measurable(ceiling[task], sign=sign) else None for task, row in delta.items()
    }


def measurable(ceiling: Sequence[float | int], *, sign: float = 1.0) -> bool:
    """Whether a ceiling, ``[value, low, high, ...]``, is 5 points or more in a direction with its interval clear of 0."""
    value, nearest = sign * ceiling[0], min(sign * ceiling[1], sign * ceiling[2])
    return value >= MIN_CEILING and nearest > 0


def condition_results(
    conditions: Sequence[Condition], right: Mapping[str, Right], *, held_out: Sequence[str], base: str, seed: int
) -> list[dict[str, Any]]:
    """One row per condition that was run on every task, in order, with effects against the clean host and shares of its ceiling.

    Args:
        conditions: As planned.
        right: Condition name → outcomes.
        held_out: Tasks that enter the pooled row.
        base: The model in which a gain is claimed; in the other it is a loss.
        seed: Of the bootstrap.
    """
    everywhere = [c for c in conditions if not c.tasks]
    pooled = {c.name: with_pooled(right[c.name], held_out) for c in everywhere}
    ceilings = {
        c.model: effect_rows(pooled[f"{c.model}|clean"], pooled[c.name], seed=seed)["accuracy_delta"]
        for c in everywhere
        if c.set_kind == "ceiling"
    }
    signs = {c.model: 1.0 if c.model == base else -1.0 for c in everywhere}
    rows = []
    for c in everywhere:
        effects = effect_rows(pooled[f"{c.model}|clean"], pooled[c.name], seed=seed)
        rows.append(
            {
                "name": c.name,
                "model": c.model,
                "edit": c.edit,
                "features": c.features,
                "set_kind": c.set_kind,
                "donor": c.donor,
                "draw": c.draw,
                "n_features": len(c.ids),
                **effects,
                "share_of_ceiling": shares_of_ceiling(
                    effects["accuracy_delta"], ceilings[c.model], sign=signs[c.model]
                ),
            }
        )
    return rows
