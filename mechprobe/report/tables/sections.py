"""From result files to the rows, sentences and panels of a report: pure functions of JSON values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from mechprobe.types import POOLED

Json = Mapping[str, Any]


def number(value: Any) -> float:
    """A JSON number as float, null as NaN."""
    return float("nan") if value is None else float(value)


def percent(value: Any, digits: int = 0) -> str:
    """A share as percent without the sign; a dash where there is no number.

    Example:
        >>> percent(0.834), percent(None), percent(0.834, 1), percent(-0.001)
        ('83', '–', '83.4', '0')
    """
    value = number(value)
    return f"{round(100 * value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else "–"


def points(value: Any) -> str:
    """A change of a share in points, with its sign.

    Example:
        >>> points(0.104), points(-0.001)
        ('+10', '0')
    """
    rounded = round(100 * number(value)) if math.isfinite(number(value)) else None
    return "–" if rounded is None else f"{rounded:+d}" if rounded else "0"


def interval(item: Sequence[Any] | None, *, signed: bool = False) -> str:
    """``[value, low, high, ...]`` in percent, as ``83 (75 to 89)``.

    Example:
        >>> interval([0.83, 0.75, 0.89, 64]), interval([0.1, -0.02, 0.2, 64], signed=True)
        ('83 (75 to 89)', '+10 (-2 to +20)')
    """
    if not item or not math.isfinite(number(item[0])):
        return "–"
    form = points if signed else percent
    if len(item) < 3 or not math.isfinite(number(item[1])):
        return form(item[0])
    return f"{form(item[0])} ({form(item[1])} to {form(item[2])})"


def p_value(value: Any) -> str:
    """A p-value with two digits, small ones as a bound."""
    value = number(value)
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def listing(items: Iterable[str]) -> str:
    """Words as ``a, b and c``.

    Example:
        >>> listing(["a", "b", "c"]), listing(["a"])
        ('a, b and c', 'a')
    """
    words = list(items)
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def ordered(found: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """A mapping with its keys in a known order; keys that the order lacks come last, as they stand.

    Example:
        >>> ordered({"b": 1, "a": 2, "z": 3}, ["a", "b", "c"])
        {'a': 2, 'b': 1, 'z': 3}
    """
    return {key: found[key] for key in [*(k for k in order if k in found), *(k for k in found if k not in order)]}


def ordered_accuracy(evaluation: Json, models: Sequence[str], tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Model → task → interval in the order of the report."""
    return {name: ordered(value, tasks) for name, value in ordered(evaluation["accuracy"], models).items()}


def ordered_classes(counts: Mapping[str, int], models: Sequence[str]) -> dict[str, int]:
    """Class counts: shared, then those of one model, of several, unconfirmed, dead."""
    last = [name for name in ("unconfirmed", "dead") if name in counts]
    middle = sorted(name for name in counts if "+" in name)
    return ordered(counts, ["shared", *(f"{name}-only" for name in models), *middle, *last])


def beats_by(better: Sequence[Any], worse: Sequence[Any], n_errors: float = 3.0) -> bool:
    """Whether one accuracy exceeds another by more than ``n_errors`` standard errors of their difference."""
    (p, *_, n), (q, *_, m) = better, worse
    error = math.sqrt(p * (1 - p) / n + q * (1 - q) / m)
    return p - q > n_errors * error and p > q


def evaluation_sentences(accuracy: Mapping[str, Json], base: str) -> list[str]:
    """For each tuned model: on which tasks it is above or below base by more than three standard errors."""
    if base not in accuracy:
        return []
    sentences = []
    for model in accuracy:
        if model == base:
            continue
        above = [task for task in accuracy[model] if beats_by(accuracy[model][task], accuracy[base][task])]
        below = [task for task in accuracy[model] if beats_by(accuracy[base][task], accuracy[model][task])]
        parts = [f"above {base} on {listing(above)}"] * bool(above) + [f"below {base} on {listing(below)}"] * bool(
            below
        )
        told = " and ".join(parts) or f"neither above nor below {base} on any task"
        sentences.append(f"{model} is {told}, by more than three standard errors of the difference.")
    return sentences


def accuracy_rows(accuracy: Mapping[str, Json], evaluation: Json) -> list[dict[str, Any]]:
    """One row per task: accuracy of each model, the forced-prefix baseline, Holm-adjusted p against base."""
    tests, forced = evaluation.get("mcnemar") or {}, evaluation.get("force_prefix")
    rows = []
    for task, first in next(iter(accuracy.values())).items():
        p_values = [tests.get(model, {}).get(task, {}).get("p_holm") for model in accuracy]
        rows.append(
            {
                "task": task,
                "n": int(first[3]),
                "cells": [interval(accuracy[model].get(task)) for model in accuracy],
                "forced": interval(forced["accuracy"].get(task)) if forced else None,
                "p": [p_value(value) for value in p_values],
            }
        )
    return rows


def ceiling_rows(ceilings: Json) -> list[dict[str, Any]]:
    """One row per site: its shares of the gain, and accuracy per task under both patches."""
    return [
        {
            "site": site,
            "chosen": site == ceilings.get("chosen"),
            "sufficiency_share": percent(value.get("sufficiency_share")),
            "necessity_share": percent(value.get("necessity_share")),
            "sufficiency": [interval(value["sufficiency"].get(task)) for task in ceilings["tasks"]],
            "necessity": [interval(value["necessity"].get(task)) for task in ceilings["tasks"]],
        }
        for site, value in ceilings["sites"].items()
    ]


def quality_rows(models: Mapping[str, Json]) -> list[dict[str, str]]:
    """One row per model: FVE, L0, dead share, cross-entropy recovered, divergence."""
    rows = []
    for name, value in models.items():
        measured = value.get("ce_recovered") is not None
        rows.append(
            {
                "model": name,
                "fve": f"{number(value['fve']):.3f}",
                "fve_per_token": f"{number(value['fve_per_token']):.3f}",
                "l0": f"{number(value['l0']):.1f}",
                "dead": f"{percent(value['dead_share'], 1)} %",
                "ce": " / ".join(f"{value[f'ce_{kind}']:.3f}" for kind in ("clean", "spliced", "zero"))
                if measured
                else "–",
                "recovered": f"{value['ce_recovered']:.3f}" if measured else "–",
                "kl": f"{value['kl_spliced']:.3f}" if measured else "–",
                "n": f"{value['n_predictions']:,}" if measured else "–",
            }
        )
    return rows


def edit_title(condition: Json) -> str:
    """What was done where, in words."""
    edit, model, donor = condition["edit"], condition["model"], condition.get("donor")
    return f"{edit} {donor} into {model}" if donor else f"{edit} in {model}"


def _matching(conditions: Sequence[Json], selected: Json, kind: str, *, any_edit: bool = False) -> list[Json]:
    """Conditions of one kind that belong to a selected condition: same model, and same edit (or made for it)."""
    return [
        condition
        for condition in conditions
        if condition.get("set_kind") == kind
        and condition["model"] == selected["model"]
        and (any_edit or selected["edit"] in (condition["edit"], condition.get("of")))
    ]


def _delta(condition: Json, task: str) -> float:
    value = (condition.get("accuracy_delta") or {}).get(task)
    return number(value[0] if isinstance(value, list | tuple) else value)


def _mean_delta(conditions: Sequence[Json], task: str) -> float:
    values = [value for value in (_delta(condition, task) for condition in conditions) if math.isfinite(value)]
    return fmean(values) if values else float("nan")


def effect_tasks(interventions: Json, order: Sequence[str]) -> list[str]:
    """Tasks of the selected conditions in a known order; the pooled row comes last."""
    selected = [c for c in interventions["conditions"] if c.get("set_kind") == "selected"]
    found = ordered(selected[0]["accuracy"], order) if selected else {}
    return [*(task for task in found if task != POOLED), *(task for task in found if task == POOLED)]


def effect_panels(interventions: Json, evaluation: Json | None, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """One panel per edit of the selected set: its effect, the random sets, ceiling, baseline and other controls."""
    conditions = interventions["conditions"]
    panels = []
    for selected in conditions:
        if selected.get("set_kind") != "selected":
            continue
        randoms = _matching(conditions, selected, "random")
        ceilings = _matching(conditions, selected, "ceiling", any_edit=True)
        compare = _matching(conditions, selected, "compare")[:1]
        baselines = _matching(conditions, selected, "baseline", any_edit=True)
        others = {
            "compare": compare,
            "vector": [c for c in baselines if c["edit"] == "vector" and "last" not in c["features"]],
            "vector_last": [c for c in baselines if c["edit"] == "vector" and "last" in c["features"]],
            "recon": _matching(conditions, selected, "recon", any_edit=True),
            "shuffled": _matching(conditions, selected, "shuffled"),
        }
        panels.append(
            {
                "title": edit_title(selected),
                "model": selected["model"],
                "edit": selected["edit"],
                "condition": selected,
                "selected": selected["accuracy_delta"],
                "random": {task: [_delta(draw, task) for draw in randoms] for task in tasks},
                "ceiling": {task: _mean_delta(ceilings, task) for task in tasks} if ceilings else None,
                "others": {kind: {t: _mean_delta(found, t) for t in tasks} for kind, found in others.items() if found},
                "labels": {"compare": str(compare[0]["features"])} if compare else {},
                **_forced_baseline(selected, conditions, evaluation, tasks),
            }
        )
    return panels


def _forced_baseline(
    selected: Json, conditions: Sequence[Json], evaluation: Json | None, tasks: Sequence[str]
) -> dict[str, Any]:
    """The forced-prefix baseline of the model: from the interventions' own samples, else from the evaluation."""
    own = [c for c in _matching(conditions, selected, "baseline", any_edit=True) if c["edit"] == "prefix"]
    if own:
        return {
            "baseline": {task: _delta(own[0], task) for task in tasks},
            "baseline_label": f"force {own[0]['features']}",
        }
    forced = (evaluation or {}).get("force_prefix")
    if not forced or not evaluation or forced["model"] != selected["model"]:
        return {}
    clean = evaluation["accuracy"][forced["model"]]
    change = {
        task: number(forced["accuracy"][task][0]) - number(clean[task][0])
        for task in tasks
        if task in forced["accuracy"] and task in clean
    }
    return {"baseline": change, "baseline_label": f"force {forced['prefix']}"}


def effect_rows(panel: Json, verdicts: Sequence[Json], tasks: Sequence[str]) -> list[dict[str, str]]:
    """One row per task of one panel, with n, intervals, flips, controls and p."""
    condition = panel["condition"]
    mine = {verdict.get("task"): verdict for verdict in verdicts if _is_of(verdict, condition)}
    return [_effect_row(panel, condition, mine.get(task, {}), task) for task in tasks]


def _effect_row(panel: Json, condition: Json, verdict: Json, task: str) -> dict[str, str]:
    accuracy = condition["accuracy"][task]
    return {
        "task": task,
        "n": str(int(accuracy[3])),
        "accuracy": interval(accuracy),
        "change": interval(condition["accuracy_delta"].get(task), signed=True),
        "random": spread(panel["random"].get(task, [])),
        "draws": str(len(panel["random"].get(task, []))),
        "p": p_value(verdict.get("p_random")),
        "p_mcnemar": p_value(verdict.get("p_mcnemar_holm", verdict.get("p_mcnemar"))),
        "ceiling": interval([panel["ceiling"][task]], signed=True) if panel.get("ceiling") else "–",
        "share": percent((condition.get("share_of_ceiling") or {}).get(task)),
        "flip_right": _flip(condition, "flip_rate_of_right", task),
        "flip_wrong": _flip(condition, "flip_rate_of_wrong", task),
        "verdict": str(verdict.get("verdict") or "–"),
    }


def spread(values: Iterable[float]) -> str:
    """Median and range of random draws, in points.

    Example:
        >>> spread([0.0, 0.1, -0.05])
        '0 [-5, +10]'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "–"
    return f"{points(median(finite))} [{points(min(finite))}, {points(max(finite))}]"


def _is_of(verdict: Json, condition: Json) -> bool:
    if verdict.get("edit") not in (condition["edit"], condition.get("name")):
        return False
    return verdict.get("model") in (None, condition["model"])


def _flip(condition: Json, name: str, task: str) -> str:
    item = (condition.get(name) or {}).get(task)
    if not item:
        return "–"
    n = f" of {int(item[3])}" if len(item) > 3 else ""
    return f"{percent(item[0])} %{n}"


def other_rows(interventions: Json, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Every condition that is neither the selected set nor a random one: change per task, in points."""
    rows = []
    for condition in interventions["conditions"]:
        if condition.get("set_kind") in ("clean", "selected", "random"):
            continue
        rows.append(
            {
                "title": edit_title(condition),
                "features": condition.get("features", "–"),
                "kind": condition.get("set_kind", "–"),
                "n_features": condition.get("n_features", "–"),
                "cells": [interval((condition.get("accuracy_delta") or {}).get(task), signed=True) for task in tasks],
            }
        )
    return rows


def share_curves(interventions: Json, tasks: Sequence[str]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Edit → task → ``(number of features, share of the ceiling)``, rising; the selected set is one of the points."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    wanted = [c for c in interventions["conditions"] if c.get("set_kind") == "size"]
    titles = {edit_title(condition) for condition in wanted}
    selected = [c for c in interventions["conditions"] if c.get("set_kind") == "selected" and edit_title(c) in titles]
    for condition in [*wanted, *selected]:
        curve = curves.setdefault(edit_title(condition), {})
        for task, share in (condition.get("share_of_ceiling") or {}).items():
            if share is not None:
                curve.setdefault(task, []).append((int(condition["n_features"]), number(share)))
    return {
        title: {task: sorted(dict(points).items()) for task, points in ordered(curve, tasks).items()}
        for title, curve in curves.items()
        if any(len(dict(points)) > 1 for points in curve.values())
    }


def feature_rows(
    ids: Iterable[int], examples: Mapping[int, Json], summary: Json | None, scores: Json | None = None
) -> list[dict[str, Any]]:
    """One row per feature that has an example entry: class, shares, density, nu, decoder cosine and shift."""
    models = list((summary or {}).get("models", []))
    base = (summary or {}).get("base", "base")
    tuned = [name for name in models if name != base]
    rows = []
    for feature in ids:
        entry = examples.get(feature)
        if entry is None:
            continue
        facts = entry["statistics"]
        rows.append(
            {
                "feature": feature,
                "class": facts.get("class", "–"),
                "mas": [_plain(facts.get(f"mas_{name}")) for name in models],
                "nrn": [_plain(facts.get(f"nrn_{name}")) for name in tuned],
                "density": [percent(facts.get(f"density_{name}"), 1) for name in models],
                "nu": [
                    f"{_plain(facts.get(f'nu_error_{name}'))} / {_plain(facts.get(f'nu_reconstruction_{name}'))}"
                    for name in tuned
                ],
                "cosine": [_plain(_pair(facts, "cosine", base, name)) for name in tuned],
                "shift": [_plain(facts.get(f"shift_{name}")) for name in tuned],
                "score": _plain((scores or {}).get(str(feature))) if scores else None,
                "examples": entry["examples"],
            }
        )
    return rows


def _pair(facts: Json, column: str, first: str, second: str) -> Any:
    """A statistic of two models, whichever of them is named first."""
    return facts.get(f"{column}_{first}_{second}", facts.get(f"{column}_{second}_{first}"))


def _plain(value: Any) -> str:
    value = number(value)
    return f"{value:.2f}" if math.isfinite(value) else "–"


def provenance_rows(stages: Iterable[Any]) -> list[dict[str, Any]]:
    """One row per stage: state, seconds, seed, versions, commit, model fingerprints."""
    rows = []
    for stage in stages:
        manifest = stage.manifest
        environment = manifest.get("environment", {})
        rows.append(
            {
                "name": stage.name,
                "state": stage.state,
                "folder": stage.folder,
                "command": stage.command,
                "seconds": f"{manifest['seconds']:.1f}" if "seconds" in manifest else "–",
                "seed": manifest.get("seed"),
                "commit": (environment.get("git_commit") or "–")[:19],
                "counts": manifest.get("counts", {}),
                "config": manifest.get("config", {}),
                "models": {name: digest[:12] for name, digest in manifest.get("models", {}).items()},
                "packages": environment.get("packages", {}),
            }
        )
    return rows
