"""The verdict on one edit, by a rule that is printed with it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mechprobe.interventions.config import InterveneConfig
from mechprobe.statistics import holm, randomization_p
from mechprobe.types import POOLED

SUPPORTED, REFUTED, DAMAGE = "supported", "refuted", "damage"
CANNOT_TELL = "this site cannot tell"
LIKE_RANDOM = "not distinguishable from random sets"
LIKE_EQUAL_NORM = "not distinguishable from changes of equal norm"
NOT_CLEAR = "not clear of 0"
NO_VERDICT = "no verdict: "
"""Begins every verdict that says why there is none."""

REFUTED_SHARE = 0.10
BEYOND = 0.10
"""How far, in accuracy, an effect on one task must lie beyond that task's ceiling to count as damage."""


def rule_text(config: InterveneConfig) -> str:
    """The rule in words."""
    return (
        f"In this order. 'no verdict': fewer than {config.min_n} samples. 'this site cannot tell': patching the whole "
        f"residual moves less than {config.min_ceiling_share:.0%} of the gap between the clean models, or nothing (95 % "
        f"interval not clear of 0), or there is no gap. 'no verdict': too few control sets to reach p ≤ {config.alpha:g}. "
        f"'damage': in {config.tuned}, more is taken than the whole residual takes (of the pooled row, or of one task by more "
        f"than {100 * BEYOND:.0f} points); in {config.base}, accuracy falls. 'refuted': the interval's upper end is below "
        f"{REFUTED_SHARE:.0%} of the ceiling. 'not distinguishable from random sets': the effect does not exceed the random "
        f"sets matched on density, decoder norm and write ({config.n_random}) at p ≤ {config.alpha:g}, randomization test. "
        "'not clear of 0': the interval holds 0, or exact McNemar against the clean host has p above that. 'not "
        "distinguishable from changes of equal norm': likewise against changes of equal norm on every token in other "
        f"features' directions ({config.n_shuffled}). Else 'supported'. The pooled row, over the untrained tasks, is one test "
        "of each kind. On single tasks McNemar's p is Holm-adjusted over the tasks of the edit; the two comparisons with "
        "control sets are not, as their smallest p is 1 / (1 + number of sets): a verdict on one task says less than the "
        "pooled one. A verdict says what the set does, not that features are needed for it: see the one-vector baselines."
    )


def signed(row: Mapping[str, Any], task: str, sign: float) -> tuple[float, float, float]:
    """Effect in the claimed direction with its interval."""
    value, low, high = row["accuracy_delta"][task][:3]
    return (value, low, high) if sign > 0 else (0.0 - value, 0.0 - high, 0.0 - low)  # 0 keeps no minus sign


class Evidence(NamedTuple):
    """What a verdict on one edit rests on; effects are accuracies in the claimed direction.

    Attributes:
        effect: ``(value, low, high)`` of the selected set.
        ceiling: ``(value, low, high)`` of the whole-residual patch.
        gap: Accuracy of the clean tuned model less the clean base's.
        p_random: Randomization p-value against matched random sets; NaN where none was run.
        p_equal_norm: Likewise against changes of equal norm in other directions.
        n: Samples.
        falls: Whether the claim is a loss (an edit of the tuned model).
        beyond_on_a_task: Whether on one task the effect lies wholly beyond that task's ceiling, by more than 10 points.
        p_paired: Exact McNemar p-value against the clean host; of a single task Holm-adjusted over the tasks.
    """

    effect: tuple[float, float, float]
    ceiling: tuple[float, float, float]
    gap: float
    p_random: float
    p_equal_norm: float
    n: int
    falls: bool
    beyond_on_a_task: bool = False
    p_paired: float | int = 0.0


def judge(evidence: Evidence, config: InterveneConfig) -> str:
    """Apply the rule of `rule_text`: one of the names above, or `NO_VERDICT` and why."""
    hindrance = _no_verdict_reason(evidence, config)
    if hindrance is not None:
        return hindrance
    _, low, high = evidence.effect
    ceiling = evidence.ceiling[0]
    if (evidence.falls and (low > ceiling or evidence.beyond_on_a_task)) or (not evidence.falls and high < 0):
        return DAMAGE
    if high < REFUTED_SHARE * ceiling:
        return REFUTED
    if evidence.p_random > config.alpha:
        return LIKE_RANDOM
    if low <= 0 or evidence.p_paired > config.alpha:
        return NOT_CLEAR
    return LIKE_EQUAL_NORM if evidence.p_equal_norm > config.alpha else SUPPORTED


def _no_verdict_reason(evidence: Evidence, config: InterveneConfig) -> str | None:
    """Why nothing can be judged, or None."""
    if evidence.n < config.min_n:
        return f"{NO_VERDICT}{evidence.n} samples, fewer than {config.min_n}"
    ceiling, low, _ = evidence.ceiling
    if not evidence.gap > 0 or ceiling < config.min_ceiling_share * evidence.gap or low <= 0:
        return CANNOT_TELL
    for name, n, p in (
        ("matched random sets", config.n_random, evidence.p_random),
        ("changes of equal norm", config.n_shuffled, evidence.p_equal_norm),
    ):
        if p != p:
            return f"{NO_VERDICT}no {name} were run"
        if 1 / (1 + n) > config.alpha:
            return f"{NO_VERDICT}with {n} {name} no p can reach {config.alpha:g}"
    return None


def verdicts(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], config: InterveneConfig) -> list[dict[str, Any]]:
    """Effect, p-values and verdict of every main edit, on every task and on the pooled row."""
    gaps = clean_gaps(rows, tasks, config)
    result = []
    for main in [row for row in rows if row["set_kind"] == "selected"]:
        mine = [_task_row(main, rows, task, config) for task in [*tasks, POOLED]]
        adjust(mine[:-1])
        untrained = [row for row in mine[:-1] if row["task"] not in config.trained and row["n"] >= config.min_n]
        beyond = any(row["effect"][1] > max(row["ceiling"], 0.0) + BEYOND for row in untrained)
        for row in mine:
            row["verdict"] = task_verdict(row, gaps[row["task"]], config, beyond=beyond and row is mine[-1])
            row["sentence"] = sentence(row, config)
        result += mine
    return result


def clean_gaps(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], config: InterveneConfig) -> dict[str, float]:
    """Task → accuracy of the clean tuned model less the clean base's, with the pooled row."""
    by_name = {row["name"]: row["accuracy"] for row in rows if row["set_kind"] == "clean"}
    base, tuned = (by_name[f"{model}|clean"] for model in (config.base, config.tuned))
    return {task: tuned[task][0] - base[task][0] for task in [*tasks, POOLED]}


def adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Put the Holm-adjusted p-values over tasks into the rows of one edit."""
    for name in ("p_random", "p_mcnemar"):
        for row, adjusted in zip(rows, holm([row[name] for row in rows]), strict=True):
            row[f"{name}_holm"] = adjusted


def task_verdict(row: Mapping[str, Any], gap: float, config: InterveneConfig, *, beyond: bool = False) -> str:
    """The verdict on one row: of the pooled tasks, of one task, or of a set chosen without its task."""
    if row["task"] in config.trained:
        return f"{NO_VERDICT}post-training saw this task"
    if not row["n_features"]:
        return f"{NO_VERDICT}the set has no feature"
    evidence = Evidence(
        effect=tuple(row["effect"]),
        ceiling=tuple(row["ceiling_interval"]),
        gap=gap,
        p_random=row["p_random"],
        p_equal_norm=row["p_equal_norm"],
        n=row["n"],
        falls=row["model"] != config.base,
        beyond_on_a_task=beyond,
        p_paired=row.get("p_mcnemar_holm", row["p_mcnemar"]),
    )
    return judge(evidence, config)


def sign_of(model: str, config: InterveneConfig) -> float:
    """+1 where a gain is claimed (an edit of the base), −1 where a loss is."""
    return 1.0 if model == config.base else -1.0


def ceiling_row(model: str, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The whole-residual patch of a host."""
    return next(row for row in rows if row["model"] == model and row["set_kind"] == "ceiling")


def against_controls(
    model: str, edit: str, rows: Sequence[Mapping[str, Any]], task: str, effect: float, sign: float
) -> dict[str, Any]:
    """An effect on one task beside the ceiling and the controls of an edit, with randomization p-values."""
    ceiling = signed(ceiling_row(model, rows), task, sign)
    same = [row for row in rows if (row["model"], row["edit"]) == (model, edit)]
    random = [signed(row, task, sign)[0] for row in same if row["set_kind"] == "random"]
    turned = [signed(row, task, sign)[0] for row in same if row["set_kind"] == "shuffled"]
    vectors = [row for row in rows if row["model"] == model and row["edit"] == "vector"]
    return {
        "ceiling": ceiling[0],
        "ceiling_interval": list(ceiling),
        "random_mean": sum(random) / len(random) if random else None,
        "random_max": max(random, default=None),
        "n_random": len(random),
        "p_random": randomization_p(effect, random),
        "equal_norm_mean": sum(turned) / len(turned) if turned else None,
        "equal_norm_max": max(turned, default=None),
        "n_equal_norm": len(turned),
        "p_equal_norm": randomization_p(effect, turned),
        "one_vector": {row["features"]: signed(row, task, sign)[0] for row in vectors},
    }


def _task_row(
    main: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], task: str, config: InterveneConfig
) -> dict[str, Any]:
    sign = sign_of(main["model"], config)
    effect = signed(main, task, sign)
    return {
        "model": main["model"],
        "edit": main["edit"],
        "features": main["features"],
        "n_features": main["n_features"],
        "readout": main.get("readout"),
        "task": task,
        "effect": list(effect),
        "n": main["accuracy"][task][3],
        "p_mcnemar": main["mcnemar_p"][task],
        **against_controls(main["model"], main["edit"], rows, task, effect[0], sign),
    }


def sentence(row: Mapping[str, Any], config: InterveneConfig) -> str:
    """One effect in words, with its numbers and the verdict."""
    direction = "gives" if row["model"] == config.base else "takes"
    where = "the untrained tasks" if row["task"] == POOLED else row["task"]
    parts = [
        f"n = {row['n']}",
        *([f"{row['readout']} read-out"] if row.get("readout") else []),
        f"whole residual {_points(row['ceiling'])}",
    ]
    if row["n_random"]:
        mean = _points(row["random_mean"])
        parts.append(f"{row['n_random']} matched random sets {mean} on average, p = {row['p_random']:.3f}")
    if row["n_equal_norm"]:
        top = _points(row["equal_norm_max"])
        parts.append(f"{row['n_equal_norm']} of equal norm at most {top}, p = {row['p_equal_norm']:.3f}")
    if "p_mcnemar_holm" in row:
        parts.append(f"McNemar p = {row['p_mcnemar_holm']:.2g} after Holm")
    parts += [f"{name} as one vector {_points(effect)}" for name, effect in row["one_vector"].items()]
    text = f"{row['edit']} of {row['features']} in {row['model']} {direction} {points_with_interval(row['effect'])} points on {where}"
    return f"{text} ({'; '.join(parts)}): {row['verdict']}."


def points_with_interval(effect: Sequence[float | int]) -> str:
    """``47 [40, 54]`` of ``[value, low, high]`` in accuracy."""
    value, low, high = (_points(part) for part in effect)
    return f"{value} [{low}, {high}]"


def _points(accuracy: float) -> int | str:
    """Whole points of accuracy; a dash where nothing was measured."""
    return round(100 * accuracy) if accuracy == accuracy else "–"


def headline(rows: Sequence[Mapping[str, Any]], config: InterveneConfig) -> str:
    """One sentence over all pooled verdicts."""
    pooled = [row for row in rows if row["task"] == POOLED]
    parts = [f"{row['edit']} in {row['model']}: {row['verdict']}" for row in pooled]
    features = pooled[0]["features"] if pooled else config.features or "selected"
    return f"Do the features {features} cause the change from {config.base} to {config.tuned}? {'; '.join(parts)}."
