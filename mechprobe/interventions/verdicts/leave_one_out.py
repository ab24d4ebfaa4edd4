"""Leave one task out: the set chosen without a task, judged on that task, beside the set chosen with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result_rows import (
    HARDLY_INDEPENDENT,
    ConditionResult,
    Effect,
    EmptyLeftOut,
    LeftOutVerdict,
    Verdict,
)
from mechprobe.interventions.verdicts.effects import effects_on_tasks, measurable, sign_of
from mechprobe.interventions.verdicts.paired import ConditionOutcomes, claimed, compare, references
from mechprobe.interventions.verdicts.rule import NO_VERDICT
from mechprobe.interventions.verdicts.verdict import adjusted, against_controls, clean_gaps, judged, several_draws

LeftOut = LeftOutVerdict | EmptyLeftOut


def left_out_verdicts(
    conditions: Sequence[Condition],
    outcomes: Mapping[str, ConditionOutcomes],
    rows: Sequence[ConditionResult],
    judged_rows: Sequence[Verdict],
    config: InterveneConfig,
    *,
    chosen: Mapping[str, Sequence[int]],
) -> list[LeftOut]:
    """One record per host and left-out task, with the effect of the full set beside it.

    Ceiling and controls (random sets, changes of equal norm, one vector) are those of the full set on the same task: the two
    sets share most of their features, and the random sets match the full set. A set of another size than the full set, as
    ``agnostic`` gives without a task, is not compared with controls and gets "no verdict". McNemar's p is Holm-adjusted over
    the left-out tasks of a host.

    ``outcomes`` are those of every condition, ``rows`` the effects, ``judged_rows`` the verdicts on the full set, and
    ``chosen`` the set that the rule chooses without each task.
    """
    result: list[LeftOut] = []
    for selected in (c for c in conditions if c.set_kind == "selected" and c.edit == "transplant"):
        full = {row.task: row for row in judged_rows if (row.model, row.edit) == (selected.model, selected.edit)}
        tasks = [task for task in chosen if task in full]
        found = [_measured(selected, full[task], conditions, outcomes, rows, config) for task in tasks]
        gaps, n_controls = clean_gaps(rows, tasks, config), len(selected.ids)
        by_task: dict[str, LeftOut] = {row.task: row for row in found}
        for row in adjusted([row for row in found if isinstance(row, LeftOutVerdict)]):
            other_size = f"the set without the task has {row.n_features} features, its controls {n_controls}"
            reason = other_size if row.n_features != n_controls else ""
            by_task[row.task] = _with_overlap(judged(row, gaps[row.task], config, reason=reason))
        result += by_task.values()
    return result


def _measured(
    selected: Condition,
    full: Verdict,
    conditions: Sequence[Condition],
    outcomes: Mapping[str, ConditionOutcomes],
    rows: Sequence[ConditionResult],
    config: InterveneConfig,
) -> LeftOut:
    """The effect on the left-out task; `EmptyLeftOut` where the rule chooses nothing without it."""
    task, host = full.task, selected.model
    known: dict[str, Any] = {field: getattr(full, field) for field in ("model", "edit", "readout", "task", "n")}
    known |= {"features": f"{selected.features} without {task}", "verdict_with": full.verdict}
    known |= {"effect_with": full.effect, "share_with": _share(full.effect, full)}
    condition = next(
        (c for c in conditions if c.set_kind == "left_out" and (c.model, c.tasks) == (host, (task,))), None
    )
    if condition is None:
        verdict = f"{NO_VERDICT}without {task} the rule chooses no feature"
        sentence = f"{selected.edit} of {known['features']} in {host}: {verdict}."
        nothing: dict[str, Any] = {"n_features": 0, "n_shared": 0, "effect": None, "share": None}
        return EmptyLeftOut(**known, **nothing, verdict=verdict, sentence=sentence)
    edited, beside = outcomes[condition.name], references(host, conditions, outcomes, config)
    effects = effects_on_tasks({task: beside.host.right[task]}, {task: edited.right[task]})
    sign = sign_of(host, config)
    effect = claimed(effects.accuracy_delta[task], sign)
    if len(condition.ids) != len(selected.ids):
        rows = [row for row in rows if row.set_kind not in ("random", "rescaled", "shuffled", "shifted")]
    return LeftOutVerdict(
        **known,
        n_features=len(condition.ids),
        n_shared=len(set(condition.ids) & set(selected.ids)),
        jaccard=len(set(condition.ids) & set(selected.ids)) / len(set(condition.ids) | set(selected.ids)),
        effect=effect,
        share=_share(effect, full),
        p_mcnemar=effects.mcnemar_p[task],
        **several_draws(effects, task),
        **dict(against_controls(host, selected.edit, rows, task, effect.value, sign)),
        **dict(compare(edited, beside, task, sign)),
    )


def _with_overlap(row: LeftOutVerdict) -> LeftOutVerdict:
    """The row with a sentence on what its set shares with the full set."""
    hardly = ", so it is hardly independent of it" if row.jaccard >= HARDLY_INDEPENDENT else ""
    shared = f"The set shares {row.n_shared} of its {row.n_features} features with the full set"
    return row.model_copy(update={"sentence": f"{row.sentence} {shared} (Jaccard {row.jaccard:.2f}){hardly}."})


def _share(effect: Effect, full: Verdict) -> float | None:
    """An effect as a share of the task's ceiling; None where the ceiling is not `measurable`."""
    ceiling = full.ceiling_interval
    return effect.value / ceiling.value if measurable(ceiling) else None
