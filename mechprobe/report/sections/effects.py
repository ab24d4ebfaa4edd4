"""What the selected features cause, as numbers for figures and as tables: effects with controls, other conditions, shares by size."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mechprobe.evals.result import EvaluationSummary
from mechprobe.formatting import MISSING, edit_title, interval, number, ordered, percent, points, remark, spread
from mechprobe.report.result import EffectPanel, JsonObject, Table
from mechprobe.report.sections.parts import counted
from mechprobe.report.tables import interventions as tables
from mechprobe.types import POOLED

Conditions = Sequence[JsonObject]
_DRAWN_OR_MAIN = ("clean", "selected", "random", "random_size", "rescaled", "shuffled", "shifted")
"""Set kinds that the table of other conditions leaves out: the main ones, and random draws."""


def effect_panels(
    interventions: JsonObject, evaluation: EvaluationSummary | None, tasks: Sequence[str]
) -> list[EffectPanel]:
    """One panel per edit of the selected set."""
    found = interventions["conditions"]
    return [_panel(condition, found, evaluation, tasks) for condition in found if condition["set_kind"] == "selected"]


def _panel(
    selected: JsonObject, conditions: Conditions, evaluation: EvaluationSummary | None, tasks: Sequence[str]
) -> EffectPanel:
    randoms = _matching(conditions, selected, "random")
    ceilings = _matching(conditions, selected, "ceiling", any_edit=True)
    compare = _matching(conditions, selected, "compare")[:1]
    vectors = [c for c in _matching(conditions, selected, "baseline", any_edit=True) if c["edit"] == "vector"]
    others = {
        "compare": compare,
        "vector": [c for c in vectors if "last" not in c["features"]],
        "vector_last": [c for c in vectors if "last" in c["features"]],
        "recon": _matching(conditions, selected, "recon", any_edit=True),
        "shuffled": _matching(conditions, selected, "shuffled"),
    }
    baseline, label = _forced_baseline(selected, conditions, evaluation, tasks)
    return EffectPanel(
        title=edit_title(selected),
        model=selected["model"],
        edit=selected["edit"],
        condition=selected,
        selected=selected["accuracy_delta"],
        random={task: [_delta(draw, task) for draw in randoms] for task in tasks},
        ceiling={task: _mean_delta(ceilings, task) for task in tasks} if ceilings else None,
        others={kind: {t: _mean_delta(found, t) for t in tasks} for kind, found in others.items() if found},
        labels={"compare": str(compare[0]["features"])} if compare else {},
        baseline=baseline,
        baseline_label=label,
    )


def _matching(conditions: Conditions, selected: JsonObject, kind: str, *, any_edit: bool = False) -> list[JsonObject]:
    """Conditions of one kind on the model of a selected condition, with the same edit or made for it."""
    return [
        condition
        for condition in conditions
        if condition["set_kind"] == kind
        and condition["model"] == selected["model"]
        and (any_edit or selected["edit"] in (condition["edit"], condition.get("of")))
    ]


def _delta(condition: JsonObject, task: str) -> float:
    value = (condition.get("accuracy_delta") or {}).get(task)
    return number(value[0] if isinstance(value, list | tuple) else value)


def _mean_delta(conditions: Conditions, task: str) -> float:
    values = [value for value in (_delta(condition, task) for condition in conditions) if math.isfinite(value)]
    return fmean(values) if values else float("nan")


def _forced_baseline(
    selected: JsonObject, conditions: Conditions, evaluation: EvaluationSummary | None, tasks: Sequence[str]
) -> tuple[dict[str, float] | None, str | None]:
    """Change under the forced prefix and its label: from the samples of the interventions, else from the evaluation."""
    own = [c for c in _matching(conditions, selected, "baseline", any_edit=True) if c["edit"] == "prefix"]
    if own:
        return {task: _delta(own[0], task) for task in tasks}, f"force {own[0]['features']}"
    forced = evaluation.force_prefix if evaluation else None
    if not evaluation or not forced or forced.model != selected["model"]:
        return None, None
    clean = evaluation.accuracy[forced.model]
    shared = [task for task in tasks if task in forced.accuracy and task in clean]
    return {task: forced.accuracy[task].value - clean[task].value for task in shared}, f"force {forced.prefix}"


def effect_table(panel: EffectPanel, results: JsonObject, tasks: Sequence[str], test: str) -> Table:
    """The effect of one edit of the selected set: one row per task, the pooled one last and set off."""
    edits = (panel.edit, panel.condition.get("name"))
    rows = [row for row in results["verdicts"] if row["edit"] in edits and row["model"] == panel.model]
    own = {row["task"]: row for row in rows}
    n = panel.condition["n_features"]
    return Table(
        title=panel.title,
        head=[
            "task", "n", "accuracy %", "change, points", "random: median [range]", "draws", "p vs random (Holm)", f"p {test} (Holm)",
            "ceiling, points", "share of ceiling %", "right → not right", "not right → right", "verdict",
        ],
        rows=[_effect_row(panel, own.get(task, {}), task) for task in tasks],
        notes=[f"Set {panel.condition['features']} with {counted(n, 'feature')}, edited at {results['site']}."],
        chosen=[place for place, task in enumerate(tasks) if task == POOLED],
    )  # fmt: skip


def _effect_row(panel: EffectPanel, verdict: JsonObject, task: str) -> list[str]:
    condition, draws = panel.condition, panel.random.get(task, [])
    accuracy = condition["accuracy"][task]
    return [
        task,
        f"{int(accuracy[3]):,}",
        interval(accuracy) + _cut(condition, task),
        interval(condition["accuracy_delta"].get(task), signed=True),
        spread(draws),
        str(len(draws)),
        tables.both_p(verdict, "p_random"),
        tables.both_p(verdict, "p_mcnemar"),
        points(panel.ceiling[task]) if panel.ceiling else MISSING,
        _share(condition, verdict, task),
        _flips(condition.get("flip_rate_of_right"), task),
        _flips(condition.get("flip_rate_of_wrong"), task),
        str(verdict.get("verdict") or MISSING),
    ]


def _share(condition: JsonObject, verdict: JsonObject, task: str) -> str:
    """The share of the ceiling with its interval, where the ceiling is measurable."""
    share = (condition.get("share_of_ceiling") or {}).get(task)
    return percent(share) if share is None else interval(verdict.get("share_interval") or [share])


def _cut(condition: JsonObject, task: str) -> str:
    return remark(cut=(condition.get("cut") or {}).get(task))


def _flips(rates: Mapping[str, Any] | None, task: str) -> str:
    rate = (rates or {}).get(task)
    return f"{percent(rate[0])} % of {int(rate[3])}" if rate else MISSING


def effect_tasks(results: JsonObject, order: Sequence[str]) -> list[str]:
    """Tasks of the selected conditions in the given order, then the pooled row."""
    selected = [c for c in results["conditions"] if c["set_kind"] == "selected"]
    found = ordered(selected[0]["accuracy"], order) if selected else {}
    return [*(task for task in found if task != POOLED), *(task for task in found if task == POOLED)]


def other_rows(results: JsonObject, tasks: Sequence[str]) -> list[list[str]]:
    """Every condition besides clean models, selected sets and random draws, with its change per task in points."""
    return [
        [
            edit_title(condition),
            str(condition["features"]),
            str(condition["set_kind"]),
            str(condition["n_features"]),
            *(
                interval((condition["accuracy_delta"] or {}).get(task), signed=True) + _cut(condition, task)
                for task in tasks
            ),
        ]
        for condition in results["conditions"]
        if condition["set_kind"] not in _DRAWN_OR_MAIN
    ]


def share_curves(results: JsonObject, tasks: Sequence[str]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Edit → task → ``(number of features, share of the ceiling)``, ascending; includes the selected set itself."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    sizes, selected = ([c for c in results["conditions"] if c["set_kind"] == kind] for kind in ("size", "selected"))
    titles = {edit_title(condition) for condition in sizes}
    for condition in [*sizes, *(c for c in selected if edit_title(c) in titles)]:
        curve = curves.setdefault(edit_title(condition), {})
        for task, share in (condition["share_of_ceiling"] or {}).items():
            if share is not None:
                curve.setdefault(task, []).append((int(condition["n_features"]), number(share)))
    return {
        title: {task: sorted(dict(points).items()) for task, points in ordered(curve, tasks).items()}
        for title, curve in curves.items()
        if any(len(dict(points)) > 1 for points in curve.values())
    }
