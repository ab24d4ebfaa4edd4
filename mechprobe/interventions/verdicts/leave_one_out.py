"""Leave one task out: the set chosen without a task, judged on that task, beside the set chosen with it."""

from collections.abc import Mapping, Sequence

from mechprobe.interventions.condition_result import ConditionResult, Effect
from mechprobe.interventions.conditions.condition import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.verdict_result import EmptyLeftOut, LeftOutVerdict, Verdict
from mechprobe.interventions.verdicts.controls import against_controls, claimed, clean_gaps, sign_of
from mechprobe.interventions.verdicts.effects import Right, effects_on_tasks, measurable
from mechprobe.interventions.verdicts.rule import NO_VERDICT
from mechprobe.interventions.verdicts.verdict import adjusted, judged, task_verdict

LeftOut = LeftOutVerdict | EmptyLeftOut


def left_out_verdicts(
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
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

    Args:
        conditions: The plan; conditions of kind ``left_out`` are read.
        right: Condition name → outcomes.
        rows: Effects of all conditions.
        judged_rows: Verdicts on the full set.
        config: Settings.
        chosen: Task → the set that the rule chooses without it.
    """
    result: list[LeftOut] = []
    for selected in (c for c in conditions if c.set_kind == "selected" and c.edit == "transplant"):
        full = {row.task: row for row in judged_rows if (row.model, row.edit) == (selected.model, selected.edit)}
        tasks = [task for task in chosen if task in full]
        found = [_measured(selected, full[task], conditions, right, rows, config) for task in tasks]
        measured = iter(adjusted([row for row in found if isinstance(row, LeftOutVerdict)]))
        gaps = clean_gaps(rows, tasks, config)
        for row in (next(measured) if isinstance(row, LeftOutVerdict) else row for row in found):
            if isinstance(row, LeftOutVerdict):
                verdict = _size_differs(row, len(selected.ids)) or task_verdict(row, gaps[row.task], config)
                row = judged(row, verdict, config)
            result.append(row)
    return result


def _measured(
    selected: Condition,
    full: Verdict,
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    rows: Sequence[ConditionResult],
    config: InterveneConfig,
) -> LeftOut:
    """The effect on the left-out task; `EmptyLeftOut` where the rule chooses nothing without it."""
    task, host = full.task, selected.model
    condition = next(
        (c for c in conditions if c.set_kind == "left_out" and (c.model, c.tasks) == (host, (task,))), None
    )
    if condition is None:
        return _empty(selected, full)
    before, after = right[f"{host}|clean"][task], right[condition.name][task]
    effects = effects_on_tasks({task: before}, {task: after}, seed=config.seed)
    sign = sign_of(host, config)
    effect = claimed(effects.accuracy_delta[task], sign)
    if len(condition.ids) != len(selected.ids):
        rows = [row for row in rows if row.set_kind not in ("random", "shuffled")]
    return LeftOutVerdict(
        model=host,
        edit=selected.edit,
        features=f"{selected.features} without {task}",
        n_features=len(condition.ids),
        readout=full.readout,
        task=task,
        effect=effect,
        n=full.n,
        p_mcnemar=effects.mcnemar_p[task],
        n_shared=len(set(condition.ids) & set(selected.ids)),
        share=_share(effect, full),
        effect_with=full.effect,
        share_with=_share(full.effect, full),
        verdict_with=full.verdict,
        **dict(against_controls(host, selected.edit, rows, task, effect.value, sign)),
    )


def _empty(selected: Condition, full: Verdict) -> EmptyLeftOut:
    features = f"{selected.features} without {full.task}"
    verdict = f"{NO_VERDICT}without {full.task} the rule chooses no feature"
    return EmptyLeftOut(
        model=selected.model,
        edit=selected.edit,
        features=features,
        task=full.task,
        n=full.n,
        readout=full.readout,
        effect_with=full.effect,
        share_with=_share(full.effect, full),
        verdict_with=full.verdict,
        effect=None,
        share=None,
        n_features=0,
        n_shared=0,
        verdict=verdict,
        sentence=f"{selected.edit} of {features} in {selected.model}: {verdict}.",
    )


def _size_differs(row: LeftOutVerdict, n_controls: int) -> str | None:
    """Why the set cannot be judged against controls of ``n_controls`` features; None where the sizes are equal."""
    if row.n_features == n_controls:
        return None
    return f"{NO_VERDICT}the set without the task has {row.n_features} features, its controls {n_controls}"


def _share(effect: Effect, full: Verdict) -> float | None:
    """An effect as a share of the task's ceiling; None where the ceiling is not `measurable`."""
    ceiling = full.ceiling_interval
    return effect.value / ceiling.value if measurable(ceiling) else None
