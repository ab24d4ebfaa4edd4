"""Leave one task out: the set chosen without a task, judged on that task, beside the set chosen with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.interventions.conditions.conditions import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.verdicts.effects import Right, effect_rows, measurable
from mechprobe.interventions.verdicts.verdict import (
    NO_VERDICT,
    adjust,
    against_controls,
    clean_gaps,
    sentence,
    sign_of,
    signed,
    task_verdict,
)

Rows = Sequence[Mapping[str, Any]]


def left_out_rows(
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    rows: Rows,
    judged: Rows,
    config: InterveneConfig,
    *,
    chosen: Mapping[str, Sequence[int]],
) -> list[dict[str, Any]]:
    """One row per host and left-out task, in the form of the verdicts, with the full set's effect beside it.

    Ceiling and controls (random sets, changes of equal norm, one vector) are the full set's on the same task: the two
    sets share most of their features, and the random sets match the full one. A set of another size than the full one (as
    ``agnostic`` gives without a task) has no random sets or changes of equal norm to stand beside: it is not compared with
    them, and has "no verdict".

    Args:
        conditions: As planned; those of kind ``left_out`` are read.
        right: Condition name → outcomes.
        rows: Of `mechprobe.interventions.verdicts.effects.condition_results`.
        judged: Of `mechprobe.interventions.verdicts.verdict.verdicts`.
        config: Settings.
        chosen: Task → the set chosen without it, as the selection has it.

    Returns:
        Rows as of `verdicts`, ``features`` being ``<rule> without <task>``; further ``n_features``, ``n_shared`` (features
        that the full set has too), ``share`` of the task's ceiling, and of the full set ``effect_with``, ``share_with``,
        ``verdict_with``. McNemar's p is Holm-adjusted over the left-out tasks of a host. A set without features has no
        effect (None) and "no verdict"; one of another size than the full set has an effect and "no verdict".
    """
    result: list[dict[str, Any]] = []
    for selected in (c for c in conditions if c.set_kind == "selected" and c.edit == "transplant"):
        with_it = {row["task"]: row for row in judged if (row["model"], row["edit"]) == (selected.model, selected.edit)}
        tasks = [task for task in chosen if task in with_it]
        mine = [_row(selected, task, conditions, right, rows, config, with_it[task]) for task in tasks]
        measured = [row for row in mine if row["effect"] is not None]
        adjust(measured)
        gaps = clean_gaps(rows, tasks, config)
        for row in measured:
            row["verdict"] = _of_another_size(row, len(selected.ids)) or task_verdict(row, gaps[row["task"]], config)
            row["sentence"] = sentence(row, config)
        result += mine
    return result


def _row(
    selected: Condition,
    task: str,
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    rows: Rows,
    config: InterveneConfig,
    with_it: Mapping[str, Any],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": selected.model,
        "edit": selected.edit,
        "features": f"{selected.features} without {task}",
        "task": task,
        "n": with_it["n"],
        "readout": with_it.get("readout"),
        "effect_with": with_it["effect"],
        "share_with": _share(with_it["effect"][0], with_it),
        "verdict_with": with_it["verdict"],
    }
    found = [c for c in conditions if c.set_kind == "left_out" and (c.model, c.tasks) == (selected.model, (task,))]
    if not found:
        none = f"{NO_VERDICT}without {task} the rule chooses no feature"
        told = f"{selected.edit} of {row['features']} in {selected.model}: {none}."
        return {**row, "effect": None, "share": None, "n_features": 0, "n_shared": 0, "verdict": none, "sentence": told}
    (condition,) = found
    before, after = right[f"{selected.model}|clean"][task], right[condition.name][task]
    effects = effect_rows({task: before}, {task: after}, seed=config.seed)
    sign = sign_of(selected.model, config)
    effect = signed(effects, task, sign)
    if len(condition.ids) != len(selected.ids):
        rows = [other for other in rows if other["set_kind"] not in ("random", "shuffled")]
    return {
        **row,
        "effect": list(effect),
        "p_mcnemar": effects["mcnemar_p"][task],
        "n_features": len(condition.ids),
        "n_shared": len(set(condition.ids) & set(selected.ids)),
        **against_controls(selected.model, selected.edit, rows, task, effect[0], sign),
        "share": _share(effect[0], with_it),
    }


def _of_another_size(row: Mapping[str, Any], n_controls: int) -> str | None:
    """Why a set cannot be judged against controls of ``n_controls`` features; None where it has as many."""
    n = row["n_features"]
    if n == n_controls:
        return None
    return f"{NO_VERDICT}the set without the task has {n} features, its controls {n_controls}"


def _share(effect: float, with_it: Mapping[str, Any]) -> float | None:
    """Share of a task's ceiling; None where that has no `measurable` size."""
    ceiling = with_it["ceiling_interval"]
    return effect / ceiling[0] if measurable(ceiling) else None
