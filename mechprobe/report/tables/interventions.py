"""Doses, collateral, left-out tasks and smallest sets as rows and sentences, from the JSON value of ``results.json``."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from mechprobe.formatting import decimal, edit_title, interval, listing, nats, p_value, percent, remark
from mechprobe.interventions.result_rows import HARDLY_INDEPENDENT
from mechprobe.selection.never_active import never_active_sentences
from mechprobe.types import POOLED

Json = Mapping[str, Any]


def dose_curves(interventions: Json) -> dict[str, list[tuple[float, Json]]]:
    """Kind of edit and host → ``(strength, condition)`` by rising strength, for kinds that ran at several strengths."""
    curves: dict[str, list[tuple[float, Json]]] = {}
    for condition in interventions["conditions"]:
        kind, colon, value = condition["edit"].partition(":")
        if colon and condition.get("set_kind") in ("dose", "selected"):
            curves.setdefault(f"{kind} in {condition['model']}", []).append((float(value), condition))
    return {title: sorted(points, key=itemgetter(0)) for title, points in curves.items() if len(points) > 1}


def dose_rows(interventions: Json, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """One row per strength, with the change on every task and its interval."""
    return [
        {"title": title, "value": f"{value:g}", "cells": [_change(condition, task) for task in tasks]}
        for title, points in dose_curves(interventions).items()
        for value, condition in points
    ]


def _change(condition: Json, task: str) -> str:
    """The change on a task in points, with the share of its responses that were cut."""
    cut = (condition.get("cut") or {}).get(task)
    return interval(condition["accuracy_delta"].get(task), signed=True) + remark(cut=cut)


def dose_sentences(interventions: Json) -> list[str]:
    """The pooled change at every strength, one sentence per curve."""
    return [
        f"Dose of {title}, change of the pooled accuracy in points by strength: "
        + ", ".join(f"{value:g} {_change(c, POOLED)}" for value, c in points)
        + "."
        for title, points in dose_curves(interventions).items()
    ]


def change_sentences(interventions: Json) -> list[str]:
    """The edits that leave the range of the data, with their relative changes of the residual."""
    about = interventions.get("changes") or {}
    far = [c for c in interventions["conditions"] if c["name"] in (about.get("far") or ())]
    if not far:
        return []
    edits = "; ".join(f"{edit_title(c)} {c['relative_change']:.3g}" for c in far)
    return [
        f"These edits leave the range of the data: at some of {about['n_tokens']:,} prompt tokens they change the residual by more "
        f"than {about['bound']:g} times its norm (largest multiple: {edits}). Their effects say little about the features; use a "
        "smaller strength."
    ]


def comparison_sentences(interventions: Json) -> list[str]:
    """The set against its best rival, one sentence per host, and what is left without the set."""
    found = []
    for row in interventions.get("comparisons") or []:
        without = {one["name"]: one for one in row["rivals"] if one["rank"] is None and one["dose"] is None}
        rest = "; ".join(f"{name} {interval(one['effect'])}" for name, one in without.items())
        found += [row["sentence"]] if row["sentence"] else []
        found += [f"Beside {row['edit']} in {row['model']}, points in the claimed direction: {rest}."] if rest else []
    return found


def ranking_sentences(interventions: Json) -> list[str]:
    """The transplants of the sets by other rankings, one sentence per host, and where one does more than the selected set."""
    rows, by_host = interventions.get("other_rankings") or [], {}
    for row in rows:
        shown = f"{row['features']} ({row['n_features']} features) {interval(row['effect'])}"
        by_host.setdefault(f"{row['edit']} in {row['model']}", []).append(shown)
    found = [
        f"Sets by other rankings ({title}, points in the claimed direction): {listing(effects)}."
        for title, effects in by_host.items()
    ]
    return found + [row["sentence"] for row in rows if row["sentence"]]


def area_sentences(interventions: Json) -> list[str]:
    """Area under the curve of the share of the ceiling by size, one sentence per host."""
    by_host: dict[str, list[str]] = {}
    for curve in interventions.get("curves") or []:
        if curve["area"] is not None:
            by_host.setdefault(curve["model"], []).append(f"{curve['kind']} {curve['area']:.2f}")
    return [f"Mean share of the ceiling over log size in {host}: {listing(areas)}." for host, areas in by_host.items()]


def control_sentences(interventions: Json) -> list[str]:
    """How many independent draws the random sets are worth, and how large their changes are beside the set's."""
    found = []
    for row in interventions.get("verdicts", []):
        own, random = row.get("change_norm"), row.get("random_change_norm")
        if row.get("task") == POOLED and row.get("n_random") and own and random is not None:
            worth = row.get("n_random_effective")
            found.append(
                f"{row['edit']} in {row['model']}: {row['n_random']} random sets"
                + (f" worth {worth:.0f} independent draws" if worth is not None else "")
                + f", change norm {random:.3g} against {own:.3g}"
            )
    return [f"Controls by edit: {'; '.join(found)}."] if found else []


def measured_collateral(interventions: Json) -> list[Json]:
    """The conditions whose collateral was measured, in order."""
    return [condition for condition in interventions["conditions"] if condition.get("collateral")]


def collateral_rows(interventions: Json) -> list[dict[str, Any]]:
    """One row per measured condition, with KL, change of cross-entropy, and the change on every task that did not select."""
    others = interventions.get("other_tasks") or []
    return [
        {
            "title": edit_title(condition),
            "features": condition.get("features", "–"),
            "kind": condition.get("set_kind", "–"),
            "kl": nats(condition["collateral"]["kl"]),
            "ce": nats(condition["collateral"]["ce_change"]),
            "cells": [_change(condition, task) for task in others],
        }
        for condition in measured_collateral(interventions)
    ]


def collateral_sentences(interventions: Json) -> list[str]:
    """The collateral of every main edit beside that of the whole residual, and the texts it was measured on."""
    about = interventions.get("collateral")
    found = measured_collateral(interventions)
    if not about or not found:
        return []
    shown = [c for c in found if c["set_kind"] in ("selected", "ceiling")]
    measured = "; ".join(f"{edit_title(c)} {nats(c['collateral']['kl'])}" for c in shown)
    return [
        f"Collateral, KL from the clean to the edited host in nats per token on {about['source']} "
        f"({about['n_texts']:,} texts, n = {about['n_tokens']:,} tokens): {measured}.",
        *_other_task_sentences(interventions),
    ]


def _other_task_sentences(interventions: Json) -> list[str]:
    mains = [c for c in interventions["conditions"] if c.get("set_kind") == "selected"]
    sentences = []
    for task in interventions.get("other_tasks") or []:
        why = "post-training saw it" if task in (interventions.get("trained") or ()) else "it did not select features"
        changes = "; ".join(f"{edit_title(c)} {_change(c, task)}" for c in mains)
        n = int(mains[0]["accuracy"][task][3]) if mains else 0
        sentences.append(f"Other task {task} ({why}), change in points (n = {n}): {changes}.")
    return sentences


def left_out_rows(interventions: Json) -> list[dict[str, Any]]:
    """One row per host and left-out task: the set chosen without the task beside the full set."""
    return [
        {
            "title": f"{row['edit']} in {row['model']}",
            "task": row["task"],
            "n": str(row["n"]),
            "features": f"{row['n_features']} ({row['n_shared']})",
            "jaccard": decimal(row.get("jaccard")),
            "effect": interval(row["effect"]),
            "share": interval(row.get("share_interval")) if row.get("share") is not None else percent(None),
            "full": interval(row["effect_with"]),
            "share_full": percent(row.get("share_with")),
            "p": both_p(row, "p_mcnemar"),
            "verdict": row["verdict"],
        }
        for row in interventions.get("left_out") or []
    ]


def both_p(row: Json, name: str) -> str:
    """A p-value with its Holm-adjusted one: 0.048 (0.19)."""
    holm = row.get(f"{name}_holm")
    return p_value(row.get(name)) + ("" if holm is None else f" ({p_value(holm)})")


def left_out_sentences(interventions: Json) -> list[str]:
    """One sentence per host: on each task, the effect of the set chosen without it, that of the full set, and the verdict."""
    by_host: dict[str, list[Json]] = {}
    for row in interventions.get("left_out") or []:
        by_host.setdefault(f"{row['edit']} in {row['model']}", []).append(row)
    return [
        f"Sets chosen without a task and judged on it ({title}, points in the claimed direction): "
        + "; ".join(
            f"{row['task']} {interval(row['effect'])}, full set {interval(row['effect_with'])}: {row['verdict']}"
            for row in rows
        )
        + f".{_overlap_sentence(rows)}"
        for title, rows in by_host.items()
    ]


def _overlap_sentence(rows: Sequence[Json]) -> str:
    """How far the sets chosen without a task overlap with the full set; empty where there are none."""
    found = [row["jaccard"] for row in rows if row.get("jaccard") is not None]
    if not found:
        return ""
    overlap = decimal(found[0]) if len(found) == 1 else f"{decimal(min(found))} to {decimal(max(found))}"
    hardly = (
        f"; from {HARDLY_INDEPENDENT:g} on they are hardly independent of it"
        if max(found) >= HARDLY_INDEPENDENT
        else ""
    )
    return f" Jaccard index of these sets with the full set: {overlap}{hardly}."


def smallest_sentence(interventions: Json) -> str:
    """The smallest effect that the run could have found, on a task and on the pooled row; empty for old results."""
    found = interventions.get("smallest") or {}
    rows: dict[str, list[str]] = {}
    for task, row in found.items():
        if row["flips"] is None:
            size = f"none, because {row['n']} samples are too few"
        else:
            size = f"{percent(row['effect'], 1)} points ({row['flips']} of {row['n']} samples, all one way; Holm over {row['n_tests']})"
        rows.setdefault(size, []).append(task)
    parts = "; ".join(f"{listing(tasks)} {size}" for size, tasks in rows.items())
    return f"Smallest effect that the paired test could have found: {parts}." if found else ""


def size_sentences(interventions: Json) -> list[str]:
    """Per host, the smallest heads of the ranking that carry half and nine tenths of the ceiling."""
    sentences = []
    for host, found in (interventions.get("sizes") or {}).items():
        if "reason" in found:
            sentences.append(f"Smallest sets in {host} cannot be measured: {found['reason']} (n = {found['n']}).")
            continue
        goals = listing(f"{_goal(found[goal])} for {goal.replace('%', ' %')}" for goal in ("50%", "90%"))
        measured = ", ".join(str(row[0]) for row in found["shares"])
        sentences.append(
            f"Smallest transplanted sets in {host} by share of the ceiling: {goals} (n = {found['n']}; measured sizes {measured})."
        )
    return sentences


def _goal(goal: Json) -> str:
    """A smallest size with its interval.

    Example:
        >>> _goal({"size": 2, "low": 1, "high": None})
        '2 [1, not reached]'
    """
    size, low, high = ("not reached" if goal[key] is None else str(goal[key]) for key in ("size", "low", "high"))
    return f"{size} [{low}, {high}]"


def task_verdict_sentences(interventions: Json) -> list[str]:
    """One sentence per main edit, with its effect and verdict on every task."""
    by_edit: dict[str, list[Json]] = {}
    for row in interventions.get("verdicts", []):
        if row.get("task") != POOLED and row.get("verdict"):
            by_edit.setdefault(f"{row['edit']} in {row['model']}", []).append(row)
    return [
        f"By task, {title}: "
        + "; ".join(f"{row['task']} {interval(row['effect'])}, n = {row['n']}: {row['verdict']}" for row in rows)
        + "."
        for title, rows in by_edit.items()
    ]


def size_intervals(interventions: Json) -> dict[str, list[list[Any]]]:
    """Title of the transplant → ``[size, share, low, high]`` of the pooled row."""
    if not interventions.get("sizes"):
        return {}
    donors = {host: other for host, other in (interventions["pair"], interventions["pair"][::-1])}
    return {
        edit_title({"edit": "transplant", "model": host, "donor": donors[host]}): found["shares"]
        for host, found in interventions["sizes"].items()
        if "shares" in found
    }


def readout_sentence(interventions: Json) -> str:
    """Which read-out transplants use, where a rule chose it; else empty."""
    return (interventions.get("readout_choice") or {}).get("sentence", "")


def sentences(interventions: Json) -> list[str]:
    """All sentences on the interventions except the pooled verdicts."""
    return [
        *comparison_sentences(interventions),
        *ranking_sentences(interventions),
        *area_sentences(interventions),
        *never_active_sentences(interventions),
        *filter(None, [smallest_sentence(interventions), readout_sentence(interventions)]),
        *(str(found["sentence"]) for found in interventions.get("readouts") or [] if found["sentence"]),
        *change_sentences(interventions),
        *task_verdict_sentences(interventions),
        *size_sentences(interventions),
        *left_out_sentences(interventions),
        *dose_sentences(interventions),
        *collateral_sentences(interventions),
    ]
