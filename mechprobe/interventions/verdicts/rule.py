"""The rule of the verdicts, in words and in code."""

from typing import NamedTuple

from mechprobe.interventions.config import InterveneConfig

SUPPORTED, REFUTED, DAMAGE = "supported", "refuted", "damage"
CANNOT_TELL = "this site cannot tell"
LIKE_RANDOM = "not distinguishable from random sets"
LIKE_EQUAL_NORM = "not distinguishable from changes of equal norm"
NOT_CLEAR = "not clear of 0"
NO_VERDICT = "no verdict: "
"""Begins every verdict that gives the reason why there is none."""

REFUTED_SHARE = 0.10
"""An edit is refuted where the upper end of its interval is below this share of the ceiling."""
BEYOND = 0.10
"""Accuracy by which an effect on one task must exceed that task's ceiling to count as damage."""


def rule_text(config: InterveneConfig) -> str:
    """The rule in words; `judge` applies it."""
    return (
        "The first condition that holds gives the verdict. "
        f"'no verdict': there are fewer than {config.min_n} samples. "
        "'this site cannot tell': the clean models do not differ, or patching the whole residual closes less than "
        f"{config.min_ceiling_share:.0%} of the gap between them, or its 95 % interval includes 0. "
        f"'no verdict': there are too few control sets to reach p ≤ {config.alpha:g}. "
        f"'damage': in {config.tuned}, the edit takes more than the whole residual does, on the pooled row or on one task by "
        f"more than {100 * BEYOND:.0f} points; in {config.base}, accuracy falls. "
        f"'refuted': the upper end of the interval is below {REFUTED_SHARE:.0%} of the ceiling. "
        f"'not distinguishable from random sets': the effect does not exceed those of {config.n_random} random sets, matched "
        f"on density, decoder norm and contribution norm, at p ≤ {config.alpha:g} (randomization test). "
        f"'not clear of 0': the interval includes 0, or the exact McNemar test against the clean host has p > {config.alpha:g}. "
        f"'not distinguishable from changes of equal norm': the effect does not exceed those of {config.n_shuffled} changes of "
        f"the same norm on every token along other features' directions, at p ≤ {config.alpha:g}. "
        "'supported': none of these holds. "
        "The pooled row covers the untrained tasks and is one test of each kind. On single tasks, McNemar's p is Holm-adjusted "
        "over the tasks of the edit. The p-values of the two comparisons with control sets are not adjusted, because their "
        "smallest value is 1 / (1 + number of sets); a verdict on one task is therefore weaker than the pooled verdict. "
        "A verdict states what the set does, not that these features are necessary for it; compare the one-vector baselines."
    )


class Evidence(NamedTuple):
    """What a verdict on one edit rests on; effects are accuracies in the claimed direction.

    Attributes:
        effect, ceiling: ``(value, low, high)`` of the selected set, and of the whole-residual patch.
        gap: Accuracy of the clean tuned model minus that of the clean base.
        p_random, p_equal_norm: Randomization p-values against matched random sets, and against changes of equal norm in other
            directions; NaN where none was run.
        n: Samples.
        falls: Whether a loss is claimed (an edit of the tuned model).
        beyond_on_a_task: Whether the interval on some task exceeds that task's ceiling by more than 10 points.
        p_paired: Exact McNemar p-value against the clean host; on a single task Holm-adjusted over the tasks.
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
    """Apply the rule of `rule_text`; returns one of the verdicts above, or `NO_VERDICT` followed by the reason."""
    if (reason := _no_verdict_reason(evidence, config)) is not None:
        return reason
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
