"""The rule of the verdicts in words and in code, and the verdicts on the main edits, task by task and pooled."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result_rows import AgainstControls, ConditionResult, EditedRow, TaskEffects, Verdict
from mechprobe.interventions.verdicts.control_effects import claimed, control_effects, control_phrases, points, stricter
from mechprobe.interventions.verdicts.effects import sign_of
from mechprobe.statistics import holm
from mechprobe.types import POOLED

VerdictRow = TypeVar("VerdictRow", bound=Verdict)
EMPTY: Mapping[tuple[str, str], str] = MappingProxyType({})
UNTRAINED = "the untrained tasks"
"""The pooled row in words."""
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


def paired_test(n_draws: int) -> str:
    """Name of the test against the clean host, by the number of responses to each sample."""
    return "McNemar" if n_draws == 1 else "sign-flip"


def rule_text(config: InterveneConfig, n_draws: int = 1) -> str:
    """The rule in words, for ``n_draws`` responses to each sample; `judge` applies it."""
    test = paired_test(n_draws)
    p_name = "McNemar's p" if n_draws == 1 else f"the {test} p"
    unit = (
        ""
        if n_draws == 1
        else f"Accuracy is the share of right responses, {n_draws} to each sample; the sample is the unit. "
    )
    return unit + (
        "The first condition that holds gives the verdict. "
        f"'no verdict': there are fewer than {config.min_n} samples. "
        "'this site cannot tell': the clean models do not differ, or patching the whole residual closes less than "
        f"{config.min_ceiling_share:.0%} of the gap between them, or its 95 % interval includes 0. "
        f"'no verdict': there are too few control sets to reach p ≤ {config.alpha:g}, or they share so many features that they are "
        "worth too few independent ones. "
        f"'damage': in {config.tuned}, the edit takes more than the whole residual does, on the pooled row or on one task by "
        f"more than {100 * BEYOND:.0f} points; in {config.base}, accuracy falls. "
        f"'refuted': the upper end of the interval is below {REFUTED_SHARE:.0%} of the ceiling. "
        f"'not distinguishable from random sets': the effect does not exceed those of {config.n_random} random sets, matched on "
        "density, decoder norm and the norm that the edit writes, or those of the same sets scaled to the norm of the set's change "
        f"on every token, at p ≤ {config.alpha:g} (randomization tests; the larger p counts). "
        f"'not clear of 0': the interval includes 0, or the exact {test} test against the clean host has p > {config.alpha:g}. "
        f"'not distinguishable from changes of equal norm': the effect does not exceed those of {config.n_shuffled} changes of "
        "the same norm on every token along other features' decoder directions, or, for a transplant, along their shifts between "
        f"the models, at p ≤ {config.alpha:g} (the larger p counts). "
        "'supported': none of these holds. "
        "The pooled row covers the untrained tasks and is one test of each kind. "
        f"On single tasks, {p_name} is Holm-adjusted "
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
        n_effective: Independent draws that the matched random sets are worth; None where it is not known.
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
    n_effective: float | None = None


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
    worth = evidence.n_effective
    if worth is not None and 1 / (1 + round(worth)) > config.alpha:
        return f"{NO_VERDICT}the matched random sets are worth only {worth:.0f} independent draws"
    return None


def clean_gaps(rows: Sequence[ConditionResult], tasks: Sequence[str], config: InterveneConfig) -> dict[str, float]:
    """Task → accuracy of the clean tuned model minus that of the clean base, with the pooled row."""
    by_name = {row.name: row.accuracy for row in rows if row.set_kind == "clean"}
    base, tuned = (by_name[f"{model}|clean"] for model in (config.base, config.tuned))
    return {task: tuned[task].value - base[task].value for task in [*tasks, POOLED]}


def against_controls(
    host: str, edit: str, rows: Sequence[ConditionResult], task: str, effect: float, sign: float
) -> AgainstControls:
    """An effect of ``edit`` on one task beside the ceiling and the controls of that edit, with randomization p-values.

    ``effect`` counts in the claimed direction, whose ``sign`` is that of `sign_of`; ``rows`` are those of all conditions.
    """
    in_host = [row for row in rows if row.model == host]
    same = [row for row in in_host if row.edit == edit]
    ceiling = next(claimed(row.accuracy_delta[task], sign) for row in in_host if row.set_kind == "ceiling")
    vectors = [row for row in in_host if row.edit == "vector"]
    return AgainstControls(
        ceiling=ceiling.value,
        ceiling_interval=ceiling,
        **control_effects(same, task, effect, sign),
        one_vector={row.features: claimed(row.accuracy_delta[task], sign).value for row in vectors},
    )


def _sentence(row: Verdict, base: str) -> str:
    """One effect in words, with its controls and the verdict; ``base`` is the model in which a gain is claimed."""
    direction = "gives" if row.model == base else "takes"
    where = UNTRAINED if row.task == POOLED else row.task
    drawn = [f"{row.n_draws} responses each"] if row.n_draws > 1 else []
    parts = [f"n = {row.n}", *drawn, *([f"{row.readout} read-out"] if row.readout else [])]
    parts.append(f"whole residual {points(row.ceiling)}")
    parts += control_phrases(row)
    if row.p_mcnemar_holm is not None:
        parts.append(f"Holm-adjusted {paired_test(row.n_draws)} p = {row.p_mcnemar_holm:.2g}")
    parts += [f"{name} as one vector {points(effect)}" for name, effect in row.one_vector.items()]
    what = f"{row.edit} of {row.features} in {row.model} {direction} {points(*row.effect)} points on {where}"
    return f"{what} ({'; '.join(parts)}): {row.verdict}."


def headline(rows: Sequence[Verdict], config: InterveneConfig, against: Mapping[tuple[str, str], str] = EMPTY) -> str:
    """The pooled verdicts in one sentence, each with its comparison to rivals: ``against`` is by host and edit."""
    pooled = [row for row in rows if row.task == POOLED]
    compared = [(row, against.get((row.model, row.edit), "")) for row in pooled]
    verdicts = "; ".join(f"{row.edit} in {row.model}: {row.verdict}{text and f', {text}'}" for row, text in compared)
    features = pooled[0].features if pooled else config.features or "selected"
    return f"Do the features {features} cause the change from {config.base} to {config.tuned}? {verdicts}."


def judge_edits(
    rows: Sequence[ConditionResult],
    tasks: Sequence[str],
    config: InterveneConfig,
    effective: Mapping[str, float] = MappingProxyType({}),
) -> list[Verdict]:
    """Effect, p-values and verdict of every main edit, on every task and on the pooled row.

    ``effective`` gives the independent draws that the random sets are worth, for a ``transplant`` and for an ``other`` edit.
    """
    gaps = clean_gaps(rows, tasks, config)
    result = []
    for main in (row for row in rows if row.set_kind == "selected"):
        worth = effective.get("transplant" if main.edit == "transplant" else "other")
        single = adjusted([_measured(main, rows, task, config, worth) for task in tasks])
        pooled = _measured(main, rows, POOLED, config, worth)
        untrained = [row for row in single if row.task not in config.trained and row.n >= config.min_n]
        beyond = any(row.effect.low > max(row.ceiling, 0.0) + BEYOND for row in untrained)
        result += [judged(row, task_verdict(row, gaps[row.task], config), config) for row in single]
        result.append(judged(pooled, task_verdict(pooled, gaps[POOLED], config, beyond=beyond), config))
    return result


def _measured(
    main: ConditionResult, rows: Sequence[ConditionResult], task: str, config: InterveneConfig, worth: float | None
) -> Verdict:
    sign = sign_of(main.model, config)
    effect = claimed(main.accuracy_delta[task], sign)
    return Verdict(
        **{field: getattr(main, field) for field in EditedRow.model_fields},
        task=task,
        n=main.accuracy[task].n,
        effect=effect,
        p_mcnemar=main.mcnemar_p[task],
        **several_draws(main, task),
        **{
            **dict(against_controls(main.model, main.edit, rows, task, effect.value, sign)),
            "n_random_effective": worth,
        },
    )


def several_draws(effects: TaskEffects, task: str) -> dict[str, int]:
    """The field ``n_draws`` of a verdict, where there are several responses to each sample."""
    n_draws = effects.n_draws.get(task, 1)
    return {"n_draws": n_draws} if n_draws > 1 else {}


def adjusted(rows: Sequence[VerdictRow]) -> list[VerdictRow]:
    """The rows of one edit with p-values that are Holm-adjusted over the tasks."""
    random, paired = holm([row.p_random for row in rows]), holm([row.p_mcnemar for row in rows])
    return [
        row.model_copy(update={"p_random_holm": for_random, "p_mcnemar_holm": for_paired})
        for row, for_random, for_paired in zip(rows, random, paired, strict=True)
    ]


def judged(row: VerdictRow, verdict: str, config: InterveneConfig) -> VerdictRow:
    """The row with its verdict and its sentence."""
    row = row.model_copy(update={"verdict": verdict})
    return row.model_copy(update={"sentence": _sentence(row, config.base)})


def task_verdict(row: Verdict, gap: float, config: InterveneConfig, *, beyond: bool = False) -> str:
    """The verdict on an effect on the pooled tasks, on one task, or on the task without which its set was chosen.

    ``gap`` and ``beyond`` are ``gap`` and ``beyond_on_a_task`` of `Evidence`.
    """
    if row.task in config.trained:
        return f"{NO_VERDICT}post-training saw this task"
    if not row.n_features:
        return f"{NO_VERDICT}the set has no feature"
    evidence = Evidence(
        effect=row.effect,
        ceiling=row.ceiling_interval,
        gap=gap,
        p_random=stricter(row.p_random, row.p_rescaled),
        p_equal_norm=stricter(row.p_equal_norm, row.p_shifted),
        n=row.n,
        falls=row.model != config.base,
        beyond_on_a_task=beyond,
        p_paired=row.p_mcnemar if row.p_mcnemar_holm is None else row.p_mcnemar_holm,
        n_effective=row.n_random_effective,
    )
    return judge(evidence, config)
