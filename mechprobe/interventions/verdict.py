"""The verdict on one edit, by a rule that is printed with it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.effects import POOLED
from mechprobe.statistics import holm, randomization_p

Verdict = Literal[
    "supported", "not distinguishable from random sets", "refuted", "damage", "this site cannot tell", "not tested"
]  # fmt: skip

REFUTED_SHARE = 0.10


def rule_text(config: InterveneConfig) -> str:
    """The rule in words."""
    return (
        f"On the held-out tasks pooled: 'this site cannot tell' when patching the whole residual moves less than "
        f"{config.min_ceiling_share:.0%} of the gap between the clean models, or nothing (95 % interval not clear of 0); "
        f"else 'damage' when the effect in {config.tuned} lies wholly beyond that ceiling, for a set cannot take away more "
        f"than the whole change; else 'supported' when the effect of the "
        f"selected set lies in the claimed direction with a 95 % interval clear of 0, exceeds the matched random "
        f"sets at p ≤ {config.alpha:g} (randomization test, {config.n_random} sets), and exceeds every one of "
        f"{config.n_shuffled} changes of equal norm in other features' directions; 'refuted' when the interval's "
        f"upper end is below {REFUTED_SHARE:.0%} of the ceiling; else 'not distinguishable from random sets'."
    )


def _signed(row: Mapping[str, Any], task: str, sign: float) -> tuple[float, float, float]:
    """Effect in the claimed direction with its interval."""
    value, low, high = row["accuracy_delta"][task][:3]
    return (value, low, high) if sign > 0 else (-value, -high, -low)


class Evidence(NamedTuple):
    """What a verdict on one edit and task rests on; effects are accuracies in the claimed direction.

    Attributes:
        effect: ``(value, low, high)`` of the selected set.
        ceiling: ``(value, low, high)`` of the whole-residual patch.
        gap: Accuracy of the clean tuned model less the clean base's.
        p_random: Randomization p-value; NaN where no random set was run.
        shuffled_max: Largest effect of a change of equal norm in other directions.
        falls: Whether the claim is a loss (an edit of the tuned model).
    """

    effect: tuple[float, float, float]
    ceiling: tuple[float, float, float]
    gap: float
    p_random: float
    shuffled_max: float
    falls: bool


def judge(evidence: Evidence, config: InterveneConfig) -> Verdict:
    """Apply the rule of `rule_text`."""
    value, low, high = evidence.effect
    ceiling = evidence.ceiling[0]
    if not evidence.gap > 0 or ceiling < config.min_ceiling_share * evidence.gap or evidence.ceiling[1] <= 0:
        return "this site cannot tell"
    if evidence.p_random != evidence.p_random:
        return "not tested"
    if evidence.falls and low > ceiling:
        return "damage"
    if low > 0 and evidence.p_random <= config.alpha and value > evidence.shuffled_max:
        return "supported"
    if high < REFUTED_SHARE * ceiling:
        return "refuted"
    return "not distinguishable from random sets"


def verdicts(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], config: InterveneConfig) -> list[dict[str, Any]]:
    """One verdict per main edit on the pooled tasks, and the effect with its p-value on every task.

    p-values over tasks are Holm-adjusted within an edit; the pooled row is one test and stands alone.
    """
    result = []
    by_name = {row["name"]: row for row in rows}
    gaps = {
        task: by_name[f"{config.tuned}|clean"]["accuracy"][task][0]
        - by_name[f"{config.base}|clean"]["accuracy"][task][0]
        for task in [*tasks, POOLED]
    }
    for main in [row for row in rows if row["set_kind"] == "selected"]:
        sign = 1.0 if main["model"] == config.base else -1.0
        same = [row for row in rows if row["model"] == main["model"]]
        ceiling = next(row for row in same if row["set_kind"] == "ceiling")
        draws = [row for row in same if row["set_kind"] == "random" and row["edit"] == main["edit"]]
        turned = [row for row in same if row["set_kind"] == "shuffled" and row["edit"] == main["edit"]]
        mine = []
        for task in [*tasks, POOLED]:
            effect = _signed(main, task, sign)
            random = [_signed(row, task, sign)[0] for row in draws]
            top = _signed(ceiling, task, sign)
            p = randomization_p(effect[0], random)
            shuffled = [_signed(row, task, sign)[0] for row in turned]
            mine.append(
                {
                    "model": main["model"],
                    "edit": main["edit"],
                    "features": main["features"],
                    "task": task,
                    "effect": list(effect),
                    "n": main["accuracy"][task][3],
                    "random_mean": sum(random) / len(random) if random else None,
                    "random_max": max(random, default=None),
                    "n_random": len(random),
                    "p_random": p,
                    "ceiling": top[0],
                    "shuffled_max": max(shuffled),
                    "n_shuffled": len(shuffled),
                    "verdict": judge(Evidence(effect, top, gaps[task], p, max(shuffled), sign < 0), config),
                }
            )
        for row, adjusted in zip(mine[:-1], holm([row["p_random"] for row in mine[:-1]]), strict=True):
            row["p_random_holm"] = adjusted
        for row in mine:
            row["sentence"] = sentence(row, config)
        result += mine
    return result


def sentence(row: Mapping[str, Any], config: InterveneConfig) -> str:
    """One verdict in words, with its numbers."""
    direction = "gives" if row["model"] == config.base else "takes"
    value, low, high = (_points(part) for part in row["effect"])
    where = "the held-out tasks" if row["task"] == POOLED else row["task"]
    text = (
        f"{row['edit']} of {row['features']} in {row['model']} {direction} "
        f"{value} [{low}, {high}] points on {where} (n = {row['n']:.0f}; "
        f"whole residual {_points(row['ceiling'])}"
    )
    if row["n_random"]:
        text += (
            f"; {row['n_random']} matched random sets {_points(row['random_mean'])} on average, "
            f"p = {row['p_random']:.3f}; equal norm in other directions at most {_points(row['shuffled_max'])}"
        )
    return f"{text}): {row['verdict']}."


def _points(accuracy: float) -> int:
    """Whole points of accuracy."""
    return round(100 * accuracy)


def headline(rows: Sequence[Mapping[str, Any]], config: InterveneConfig) -> str:
    """One sentence over all pooled verdicts."""
    pooled = [row for row in rows if row["task"] == POOLED]
    parts = [f"{row['edit']} in {row['model']}: {row['verdict']}" for row in pooled]
    features = pooled[0]["features"] if pooled else config.features
    return f"Do the features {features} cause the change from {config.base} to {config.tuned}? {'; '.join(parts)}."
