"""Verdicts on the main edits, task by task and pooled."""

from collections.abc import Sequence
from typing import TypeVar

from mechprobe.interventions.condition_result import ConditionResult
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.verdict_result import Verdict
from mechprobe.interventions.verdicts.controls import against_controls, claimed, clean_gaps, sign_of
from mechprobe.interventions.verdicts.rule import BEYOND, NO_VERDICT, Evidence, judge
from mechprobe.interventions.verdicts.sentences import verdict_sentence
from mechprobe.statistics import holm
from mechprobe.types import POOLED

VerdictRow = TypeVar("VerdictRow", bound=Verdict)


def judge_edits(rows: Sequence[ConditionResult], tasks: Sequence[str], config: InterveneConfig) -> list[Verdict]:
    """Effect, p-values and verdict of every main edit, on every task and on the pooled row."""
    gaps = clean_gaps(rows, tasks, config)
    result = []
    for main in (row for row in rows if row.set_kind == "selected"):
        single = adjusted([_measured(main, rows, task, config) for task in tasks])
        pooled = _measured(main, rows, POOLED, config)
        untrained = [row for row in single if row.task not in config.trained and row.n >= config.min_n]
        beyond = any(row.effect.low > max(row.ceiling, 0.0) + BEYOND for row in untrained)
        result += [judged(row, task_verdict(row, gaps[row.task], config), config) for row in single]
        result.append(judged(pooled, task_verdict(pooled, gaps[POOLED], config, beyond=beyond), config))
    return result


def _measured(main: ConditionResult, rows: Sequence[ConditionResult], task: str, config: InterveneConfig) -> Verdict:
    sign = sign_of(main.model, config)
    effect = claimed(main.accuracy_delta[task], sign)
    return Verdict(
        model=main.model,
        edit=main.edit,
        features=main.features,
        n_features=main.n_features,
        readout=main.readout,
        task=task,
        effect=effect,
        n=main.accuracy[task].n,
        p_mcnemar=main.mcnemar_p[task],
        **dict(against_controls(main.model, main.edit, rows, task, effect.value, sign)),
    )


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
    return row.model_copy(update={"sentence": verdict_sentence(row, config.base)})


def task_verdict(row: Verdict, gap: float, config: InterveneConfig, *, beyond: bool = False) -> str:
    """The verdict on one row.

    Args:
        row: An effect on the pooled tasks, on one task, or on the task without which its set was chosen.
        gap: Accuracy of the clean tuned model minus that of the clean base, on the same samples.
        config: Settings.
        beyond: Whether the effect exceeds the ceiling of some task, see `Evidence`.
    """
    if row.task in config.trained:
        return f"{NO_VERDICT}post-training saw this task"
    if not row.n_features:
        return f"{NO_VERDICT}the set has no feature"
    evidence = Evidence(
        effect=row.effect,
        ceiling=row.ceiling_interval,
        gap=gap,
        p_random=row.p_random,
        p_equal_norm=row.p_equal_norm,
        n=row.n,
        falls=row.model != config.base,
        beyond_on_a_task=beyond,
        p_paired=row.p_mcnemar if row.p_mcnemar_holm is None else row.p_mcnemar_holm,
    )
    return judge(evidence, config)
