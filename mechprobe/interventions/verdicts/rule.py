"""The rule of the verdicts, in words and in code."""

from typing import NamedTuple

from mechprobe.interventions.config import InterveneConfig

SUPPORTED, IN_PART, REFUTED, DAMAGE = "supported", "supported in part", "refuted", "damage"
CANNOT_TELL = "this site cannot tell"
LIKE_RANDOM = "not distinguishable from random sets"
LIKE_EQUAL_NORM = "not distinguishable from changes of equal norm"
NOT_CLEAR = "not clear of 0"
NO_VERDICT = "no verdict: "
"""Begins every verdict that gives the reason why there is none."""

REFUTED_SHARE = 0.10
"""An edit is refuted where the interval of its share of the ceiling lies below this share."""
REFUTED_N = 50
"""Samples from which an edit can be refuted."""
IN_PART_BELOW = 0.5
"""An edit is supported in part where the interval of its share of the ceiling begins below this share."""
BEYOND = 0.10
"""Margin of every sign of damage that compares shares of samples: the lower end of the paired interval must exceed it."""
COLLATERAL = 0.1
"""Margin of damage to unrelated text, in nats per token."""

Numbers = tuple[float, float, float]
"""A value with the ends of its interval."""
NO_CHANGE: Numbers = (0.0, 0.0, 0.0)


def paired_test(n_draws: int) -> str:
    """Name of the test against the clean host, by the number of responses to each sample."""
    return "McNemar" if n_draws == 1 else "sign-flip"


def rule_text(config: InterveneConfig, n_draws: int = 1) -> str:
    """The rule in words, for ``n_draws`` responses to each sample; `judge` applies it."""
    test, interval = paired_test(n_draws), "Tango's score interval for paired outcomes"
    unit = ""
    if n_draws > 1:
        unit = f"Accuracy is the share of right responses, {n_draws} to each sample; the sample is the unit. "
        interval = "an interval clustered by sample"
    return unit + (
        "The first condition that holds gives the verdict. "
        f"Every interval is a 95 % interval of a paired difference or share ({interval}). "
        f"'no verdict': there are fewer than {config.min_n} samples. "
        "'this site cannot tell': the clean models do not differ, or patching the whole residual closes less than "
        f"{config.min_ceiling_share:.0%} of the gap between them, or its interval includes 0. "
        f"'no verdict': there are too few control sets to reach p ≤ {config.alpha:g}, or they share so many features that they "
        "are worth too few independent ones. "
        f"{_damage_text(config)} "
        f"'refuted': there are at least {REFUTED_N} samples, and the interval of the share of the ceiling lies below "
        f"{REFUTED_SHARE:.0%}. "
        f"'not distinguishable from random sets': the effect does not exceed those of {config.n_random} random sets, matched on "
        "density, decoder norm and the norm that the edit writes, or those of the same sets scaled to the norm of the set's change "
        f"on every token, at p ≤ {config.alpha:g} (randomization tests; the larger p counts). "
        f"'not clear of 0': the interval includes 0, or the exact {test} test against the clean host has p > {config.alpha:g}. "
        f"'not distinguishable from changes of equal norm': the effect does not exceed those of {config.n_shuffled} changes of "
        "the same norm on every token along other features' decoder directions, or, for a transplant, along their shifts between "
        f"the models, at p ≤ {config.alpha:g} (the larger p counts). "
        f"'supported in part': the interval of the share of the ceiling begins below {IN_PART_BELOW:.0%}. "
        "'supported': none of these holds. "
        f"{_adjustment_text(config, test)} "
        "A verdict states what the set does, not that these features are necessary for it; compare the one-vector baselines."
    )


def _damage_text(config: InterveneConfig) -> str:
    margin = f"{100 * BEYOND:.0f} points"
    return (
        f"'damage', where the whole interval must exceed a margin: in {config.tuned}, the edit takes more than the whole residual "
        f"does; in {config.base}, accuracy falls; the share of unparsed and cut responses exceeds those of both clean models by more "
        f"than {margin}; the same holds on a task that post-training saw, or accuracy there is below those of both clean models by "
        f"more than {margin}; or the cross-entropy of unrelated text rises by more than {COLLATERAL:g} nats per token above 0 and "
        f"above the change that the whole residual makes (prompts of the tasks are not unrelated text). The pooled row is damage, too, where an edit of {config.tuned} takes more "
        f"on one of its tasks than the whole residual by more than {margin}, or where one of its tasks has the damage of a trained "
        "task."
    )


def _adjustment_text(config: InterveneConfig, test: str) -> str:
    n_edits = len(config.edits_base) + len(config.edits_tuned)
    p_name = "McNemar's p" if test == "McNemar" else f"the {test} p"
    fewest = min(config.n_random, config.n_shuffled)
    text = (
        f"The pooled row covers the untrained tasks; there, {p_name} is Holm-adjusted over the main edits ({n_edits}). On single "
        f"tasks, {p_name} is Holm-adjusted over the tasks of the edit. The p-values of the comparisons with control sets are "
        "adjusted likewise where the number of sets lets an adjusted p reach the level. "
    )
    if reachable(fewest, n_edits, config.alpha):
        return text + f"With {fewest} sets it can on the pooled row."
    return text + (
        f"With {fewest} sets it cannot on the pooled row, because the smallest p is 1 / (1 + number of sets): "
        f"{draws_needed(n_edits, config.alpha)} of each kind are needed. These p-values decide unadjusted there, and the verdicts "
        "of several edits together are weaker than each states."
    )


def reachable(n_draws: int, n_tests: int, alpha: float) -> bool:
    """Whether the smallest p of a randomization test, Holm-adjusted over ``n_tests``, can be at most ``alpha``."""
    return n_tests / (1 + n_draws) <= alpha * (1 + 1e-12)


def draws_needed(n_tests: int, alpha: float) -> int:
    """The smallest number of draws for which an adjusted p is `reachable`."""
    draws = max(0, int(n_tests / alpha) - 2)
    while not reachable(draws, n_tests, alpha):
        draws += 1
    return draws


class Evidence(NamedTuple):
    """What a verdict on one edit rests on; effects are accuracies in the claimed direction, all on the same samples.

    Attributes:
        effect, ceiling: ``(value, low, high)`` of the selected set, and of the whole-residual patch.
        gap: Accuracy of the clean tuned model minus that of the clean base.
        p_random, p_equal_norm: Randomization p-values against matched random sets, and against changes of equal norm in other
            directions, adjusted where the number of draws allows; NaN where none was run.
        n: Samples.
        falls: Whether a loss is claimed (an edit of the tuned model).
        share, beyond: The effect as a share of the ceiling, and minus the ceiling, with paired intervals.
        broken: Share of unparsed and cut responses minus that of the clean model that is nearer to it.
        p_paired: Exact McNemar p-value against the clean host, Holm-adjusted.
        elsewhere: Damage that was found on other rows or on unrelated text, as a clause; else empty.
        n_effective: Independent draws that the matched random sets are worth; None where it is not known.
    """

    effect: Numbers
    ceiling: Numbers
    gap: float
    p_random: float
    p_equal_norm: float
    n: int
    falls: bool
    share: Numbers
    beyond: Numbers
    broken: Numbers = NO_CHANGE
    p_paired: float | int = 0.0
    elsewhere: str = ""
    n_effective: float | None = None


def judge(evidence: Evidence, config: InterveneConfig) -> str:
    """Apply the rule of `rule_text`; returns one of the verdicts above, or `NO_VERDICT` followed by the reason."""
    if (reason := _no_verdict_reason(evidence, config)) is not None:
        return reason
    if damage_of(evidence, config):
        return DAMAGE
    if evidence.n >= REFUTED_N and evidence.share[2] < REFUTED_SHARE:
        return REFUTED
    if evidence.p_random > config.alpha:
        return LIKE_RANDOM
    if evidence.effect[1] <= 0 or evidence.p_paired > config.alpha:
        return NOT_CLEAR
    if evidence.p_equal_norm > config.alpha:
        return LIKE_EQUAL_NORM
    return SUPPORTED if evidence.share[1] >= IN_PART_BELOW else IN_PART


def damage_of(evidence: Evidence, config: InterveneConfig) -> str:
    """The first sign of damage, as a clause; empty where there is none."""
    if evidence.broken[1] > BEYOND:
        return f"{100 * evidence.broken[0]:.0f} points more responses are unparsed or cut than in either clean model"
    if evidence.falls and evidence.beyond[1] > 0:
        return "it takes more than the whole residual"
    if not evidence.falls and evidence.effect[2] < 0:
        return f"accuracy of {config.base} falls"
    return evidence.elsewhere


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
        if not reachable(n, 1, config.alpha):
            needed = draws_needed(1, config.alpha)
            return f"{NO_VERDICT}with {n} {name} no p can reach {config.alpha:g}; {needed} or more are needed"
    worth = evidence.n_effective
    if worth is not None and not reachable(round(worth), 1, config.alpha):
        return f"{NO_VERDICT}the matched random sets are worth only {worth:.0f} independent draws"
    return None
