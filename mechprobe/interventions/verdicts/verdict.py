"""The verdicts on the main edits, task by task and pooled, as records and in words."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from mechprobe.formatting import bracketed
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result_rows import (
    AgainstControls,
    ConditionResult,
    EditedRow,
    PairedComparison,
    TaskEffects,
    Verdict,
)
from mechprobe.interventions.verdicts.control_effects import (
    control_effects,
    control_phrases,
    holm_note,
    points,
    stricter,
)
from mechprobe.interventions.verdicts.effects import claimed, sign_of
from mechprobe.interventions.verdicts.rule import (
    BEYOND,
    COLLATERAL,
    DAMAGE,
    IN_PART,
    NO_VERDICT,
    SUPPORTED,
    Evidence,
    damage_of,
    judge,
    paired_test,
    reachable,
)
from mechprobe.statistics import holm
from mechprobe.types import POOLED

VerdictRow = TypeVar("VerdictRow", bound=Verdict)
EMPTY: Mapping[tuple[str, str], str] = MappingProxyType({})
UNTRAINED = "the untrained tasks"
"""The pooled row in words."""


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
    if row.share_interval.value == row.share_interval.value:
        parts.append(f"share of it {bracketed(row.share_interval)} %")
    parts += control_phrases(row)
    parts.append(f"{paired_test(row.n_draws)} p = {row.p_mcnemar:.2g}{holm_note(row.p_mcnemar_holm, row)}")
    parts += [f"{name} as one vector {points(effect)}" for name, effect in row.one_vector.items()]
    what = f"{row.edit} of {row.features} in {row.model} {direction} {points(*row.effect)} points on {where}"
    why = f" ({row.damage})" if row.damage else ""
    return f"{what} ({'; '.join(parts)}): {row.verdict}{why}."


def headline(rows: Sequence[Verdict], config: InterveneConfig, against: Mapping[tuple[str, str], str] = EMPTY) -> str:
    """The pooled verdicts in one sentence, each with its comparison to rivals: ``against`` is by host and edit."""
    pooled = [row for row in rows if row.task == POOLED]
    compared = [(row, against.get((row.model, row.edit), "")) for row in pooled]
    verdicts = "; ".join(
        f"{row.edit} in {row.model}: {row.verdict}{_size(row)}{text and f', {text}'}" for row, text in compared
    )
    features = pooled[0].features if pooled else config.features or "selected"
    return f"Do the features {features} cause the change from {config.base} to {config.tuned}? {verdicts}."


def _size(row: Verdict) -> str:
    """How much of the ceiling a supported effect is."""
    return f" ({bracketed(row.share_interval)} % of the ceiling)" if row.verdict in (SUPPORTED, IN_PART) else ""


def judge_edits(
    rows: Sequence[ConditionResult],
    tasks: Sequence[str],
    config: InterveneConfig,
    compared: Mapping[str, Mapping[str, PairedComparison]],
    effective: Mapping[str, float] = MappingProxyType({}),
    *,
    unrelated_text: bool = True,
) -> list[Verdict]:
    """Effect, p-values and verdict of every main edit, on every task and on the pooled row.

    ``rows`` are the effects of all conditions, and ``compared`` maps main edits to their comparisons by task and pooled.
    ``effective`` gives the independent draws that the random sets are worth, for a ``transplant`` and for an ``other`` edit.
    ``unrelated_text`` says whether collateral was measured on text that is not of the tasks; only then can it be damage.
    """
    gaps = clean_gaps(rows, tasks, config)
    mains = [row for row in rows if row.set_kind == "selected"]
    found = {
        main.name: {
            task: _measured(main, rows, task, config, beside, effective) for task, beside in compared[main.name].items()
        }
        for main in mains
    }
    pooled = adjusted([found[main.name][POOLED] for main in mains])
    result = []
    for main, over_all in zip(mains, pooled, strict=True):
        single = adjusted([found[main.name][task] for task in tasks])
        ceiling = next(row for row in rows if (row.model, row.set_kind) == (main.model, "ceiling"))
        text = _damaged_text(main, ceiling) if unrelated_text else ""
        outside = text or _damaged_task([row for row in single if row.task in config.trained], config)
        result += [judged(row, gaps[row.task], config, elsewhere=outside) for row in single]
        result.append(judged(over_all, gaps[POOLED], config, elsewhere=text or _damaged_task(single, config)))
    return result


def _measured(
    main: ConditionResult,
    rows: Sequence[ConditionResult],
    task: str,
    config: InterveneConfig,
    beside: PairedComparison,
    effective: Mapping[str, float],
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
            "n_random_effective": effective.get("transplant" if main.edit == "transplant" else "other"),
        },
        **dict(beside),
    )


def _damaged_task(rows: Sequence[Verdict], config: InterveneConfig) -> str:
    """A task on which the edit does damage beyond the margin, as a clause; empty where there is none."""
    for row in (row for row in rows if row.n >= config.min_n):
        if row.model != config.base and row.task not in config.trained and row.beyond_ceiling.low > BEYOND:
            return f"on {row.task} it takes more than the whole residual"
        if row.below_clean.low > BEYOND:
            return f"accuracy on {row.task} falls below that of both clean models"
        if row.broken_excess.low > BEYOND:
            return f"more responses to {row.task} are unparsed or cut than in either clean model"
    return ""


def _damaged_text(main: ConditionResult, ceiling: ConditionResult) -> str:
    """Damage to unrelated text, as a clause; empty where there is none, or where collateral was not measured."""
    if main.collateral is None or ceiling.collateral is None:
        return ""
    rise, whole = main.collateral.ce_change, ceiling.collateral.ce_change
    if rise.low <= max(0.0, whole.high) + COLLATERAL:
        return ""
    return f"the cross-entropy of unrelated text rises by {rise.value:.2f} nats per token"


def several_draws(effects: TaskEffects, task: str) -> dict[str, int]:
    """The field ``n_draws`` of a verdict, where there are several responses to each sample."""
    n_draws = effects.n_draws.get(task, 1)
    return {"n_draws": n_draws} if n_draws > 1 else {}


def adjusted(rows: Sequence[VerdictRow]) -> list[VerdictRow]:
    """Rows that are judged together, with p-values that are Holm-adjusted over them: of two kinds of control, the stricter."""
    columns = {
        "p_random_holm": holm([stricter(row.p_random, row.p_rescaled) for row in rows]),
        "p_equal_norm_holm": holm([stricter(row.p_equal_norm, row.p_shifted) for row in rows]),
        "p_mcnemar_holm": holm([row.p_mcnemar for row in rows]),
    }
    return [
        row.model_copy(update={**dict(zip(columns, values, strict=True)), "n_tests": len(rows)})
        for row, *values in zip(rows, *columns.values(), strict=True)
    ]


def judged(
    row: VerdictRow, gap: float, config: InterveneConfig, *, elsewhere: str = "", reason: str = ""
) -> VerdictRow:
    """The row with its verdict and its sentence: pooled, on one task, or on the task without which its set was chosen.

    ``gap`` and ``elsewhere`` are those of `Evidence`; a ``reason`` why there is no verdict replaces the verdict.
    """
    evidence = _evidence(row, gap, config, elsewhere)
    verdict = f"{NO_VERDICT}{reason}" if reason else judge(evidence, config)
    if row.task in config.trained:
        verdict = f"{NO_VERDICT}post-training saw this task"
    elif not row.n_features:
        verdict = f"{NO_VERDICT}the set has no feature"
    damage = damage_of(evidence, config) if verdict == DAMAGE else ""
    row = row.model_copy(update={"verdict": verdict, "damage": damage})
    return row.model_copy(update={"sentence": _sentence(row, config.base)})


def _evidence(row: Verdict, gap: float, config: InterveneConfig, elsewhere: str) -> Evidence:
    """What the verdict on a row rests on; randomization p-values are adjusted where the number of draws allows."""

    def decides(p: float, adjusted_p: float, n_draws: int) -> float:
        return adjusted_p if reachable(n_draws, row.n_tests, config.alpha) else p

    return Evidence(
        effect=row.effect,
        ceiling=row.ceiling_interval,
        share=row.share_interval,
        beyond=row.beyond_ceiling,
        gap=gap,
        p_random=decides(stricter(row.p_random, row.p_rescaled), row.p_random_holm, row.n_random),
        p_equal_norm=decides(stricter(row.p_equal_norm, row.p_shifted), row.p_equal_norm_holm, row.n_equal_norm),
        n_effective=row.n_random_effective,
        n=row.n,
        falls=row.model != config.base,
        broken=row.broken_excess,
        p_paired=row.p_mcnemar_holm,
        elsewhere=elsewhere,
    )
