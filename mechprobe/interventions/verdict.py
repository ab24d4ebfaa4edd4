"""The verdict on one edit, by a rule that is printed with it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.effects import POOLED
from mechprobe.statistics import holm, randomization_p

Verdict = Literal[
    "supported", "not distinguishable from random sets", "not distinguishable from changes of equal norm", "refuted", "damage",
    "this site cannot tell", "not tested",
]  # fmt: skip

REFUTED_SHARE = 0.10
BEYOND = 0.10
"""How far, in accuracy, an effect on one task must lie beyond that task's ceiling to count as damage."""


def rule_text(config: InterveneConfig) -> str:
    """The rule in words."""
    return (
        "On the untrained tasks pooled, in this order. 'this site cannot tell': patching the whole residual moves less than "
        f"{config.min_ceiling_share:.0%} of the gap between the clean models, or nothing (95 % interval not clear of 0). "
        f"'not tested': fewer than {config.min_n} samples, or too few control sets to reach p ≤ {config.alpha:g}. "
        f"'damage': in {config.tuned}, more is taken, pooled or on one task, than the whole residual takes; in "
        f"{config.base}, accuracy falls. 'refuted': the interval's upper end is below {REFUTED_SHARE:.0%} of the ceiling. "
        "'supported': the interval is clear of 0 in the claimed direction, and the effect exceeds both the random sets "
        f"matched on density, decoder norm and write ({config.n_random}) and changes of equal norm on every token in other "
        f"features' directions ({config.n_shuffled}) at p ≤ {config.alpha:g}, randomization tests. Else 'not "
        "distinguishable' from the one it does not exceed. A verdict says what the set does, not that features are needed for it: see "
        "the one-vector baselines."
    )


def _signed(row: Mapping[str, Any], task: str, sign: float) -> tuple[float, float, float]:
    """Effect in the claimed direction with its interval."""
    value, low, high = row["accuracy_delta"][task][:3]
    return (value, low, high) if sign > 0 else (-value, -high, -low)


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
    """

    effect: tuple[float, float, float]
    ceiling: tuple[float, float, float]
    gap: float
    p_random: float
    p_equal_norm: float
    n: int
    falls: bool
    beyond_on_a_task: bool = False


def judge(evidence: Evidence, config: InterveneConfig) -> Verdict:
    """Apply the rule of `rule_text`."""
    _, low, high = evidence.effect
    ceiling = evidence.ceiling[0]
    if not evidence.gap > 0 or ceiling < config.min_ceiling_share * evidence.gap or evidence.ceiling[1] <= 0:
        return "this site cannot tell"
    p_values = (evidence.p_random, evidence.p_equal_norm)
    reachable = all(1 / (1 + n) <= config.alpha for n in (config.n_random, config.n_shuffled))
    if evidence.n < config.min_n or not reachable or any(p != p for p in p_values):
        return "not tested"
    if (evidence.falls and (low > ceiling or evidence.beyond_on_a_task)) or (not evidence.falls and high < 0):
        return "damage"
    if high < REFUTED_SHARE * ceiling:
        return "refuted"
    if low > 0 and max(p_values) <= config.alpha:
        return "supported"
    if low > 0 and evidence.p_random <= config.alpha:
        return "not distinguishable from changes of equal norm"
    return "not distinguishable from random sets"


def verdicts(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], config: InterveneConfig) -> list[dict[str, Any]]:
    """Effect and p-values of every main edit on every task, and a verdict on the pooled row.

    The pooled row is one test and stands alone. p-values over tasks are Holm-adjusted within an edit and carry no verdict
    of their own: with 20 control sets the smallest is 1/21 before the adjustment.
    """
    by_name = {row["name"]: row for row in rows}
    clean = [by_name[f"{model}|clean"]["accuracy"] for model in (config.base, config.tuned)]
    gaps = {task: clean[1][task][0] - clean[0][task][0] for task in [*tasks, POOLED]}
    result = []
    for main in [row for row in rows if row["set_kind"] == "selected"]:
        mine = [_task_row(main, rows, task, config) for task in [*tasks, POOLED]]
        for row, adjusted in zip(mine[:-1], holm([row["p_random"] for row in mine[:-1]]), strict=True):
            row["p_random_holm"] = adjusted
            row["verdict"] = None
        pooled = mine[-1]
        untrained = [row for row in mine[:-1] if row["task"] not in config.trained]
        beyond = any(row["effect"][1] > max(row["ceiling"], 0.0) + BEYOND for row in untrained)
        pooled["verdict"] = judge(
            Evidence(
                effect=tuple(pooled["effect"]),
                ceiling=_signed(_ceiling(main, rows), POOLED, _sign(main, config)),
                gap=gaps[POOLED],
                p_random=pooled["p_random"],
                p_equal_norm=pooled["p_equal_norm"],
                n=pooled["n"],
                falls=main["model"] != config.base,
                beyond_on_a_task=beyond,
            ),
            config,
        )
        for row in mine:
            row["sentence"] = sentence(row, config)
        result += mine
    return result


def _sign(row: Mapping[str, Any], config: InterveneConfig) -> float:
    """+1 where a gain is claimed (an edit of the base), −1 where a loss is."""
    return 1.0 if row["model"] == config.base else -1.0


def _ceiling(main: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(row for row in rows if row["model"] == main["model"] and row["set_kind"] == "ceiling")


def _task_row(
    main: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], task: str, config: InterveneConfig
) -> dict[str, Any]:
    sign = _sign(main, config)
    effect = _signed(main, task, sign)
    same = [row for row in rows if (row["model"], row["edit"]) == (main["model"], main["edit"])]
    random = [_signed(row, task, sign)[0] for row in same if row["set_kind"] == "random"]
    turned = [_signed(row, task, sign)[0] for row in same if row["set_kind"] == "shuffled"]
    vectors = {
        row["features"]: _signed(row, task, sign)[0]
        for row in rows
        if row["model"] == main["model"] and row["edit"] == "vector"
    }
    return {
        "model": main["model"],
        "edit": main["edit"],
        "features": main["features"],
        "task": task,
        "effect": list(effect),
        "n": main["accuracy"][task][3],
        "ceiling": _signed(_ceiling(main, rows), task, sign)[0],
        "random_mean": sum(random) / len(random) if random else None,
        "random_max": max(random, default=None),
        "n_random": len(random),
        "p_random": randomization_p(effect[0], random),
        "equal_norm_mean": sum(turned) / len(turned) if turned else None,
        "equal_norm_max": max(turned, default=None),
        "n_equal_norm": len(turned),
        "p_equal_norm": randomization_p(effect[0], turned),
        "one_vector": vectors,
    }


def sentence(row: Mapping[str, Any], config: InterveneConfig) -> str:
    """One effect in words, with its numbers, and the verdict where there is one."""
    direction = "gives" if row["model"] == config.base else "takes"
    value, low, high = (_points(part) for part in row["effect"])
    where = "the untrained tasks" if row["task"] == POOLED else row["task"]
    parts = [f"n = {row['n']}", f"whole residual {_points(row['ceiling'])}"]
    if row["n_random"]:
        mean = _points(row["random_mean"])
        parts.append(f"{row['n_random']} matched random sets {mean} on average, p = {row['p_random']:.3f}")
    if row["n_equal_norm"]:
        top = _points(row["equal_norm_max"])
        parts.append(f"{row['n_equal_norm']} of equal norm at most {top}, p = {row['p_equal_norm']:.3f}")
    parts += [f"{name} as one vector {_points(effect)}" for name, effect in row["one_vector"].items()]
    text = f"{row['edit']} of {row['features']} in {row['model']} {direction} {value} [{low}, {high}] points on {where}"
    return f"{text} ({'; '.join(parts)})" + (f": {row['verdict']}." if row.get("verdict") else ".")


def _points(accuracy: float) -> int:
    """Whole points of accuracy."""
    return round(100 * accuracy)


def headline(rows: Sequence[Mapping[str, Any]], config: InterveneConfig) -> str:
    """One sentence over all pooled verdicts."""
    pooled = [row for row in rows if row["task"] == POOLED]
    parts = [f"{row['edit']} in {row['model']}: {row['verdict']}" for row in pooled]
    features = pooled[0]["features"] if pooled else config.features
    return f"Do the features {features} cause the change from {config.base} to {config.tuned}? {'; '.join(parts)}."
