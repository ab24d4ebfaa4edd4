"""Whether a transplant does the same under the two read-outs that it runs with; the verdict uses one of them."""

from collections.abc import Mapping, Sequence

from mechprobe.interventions.conditions.plan import Condition, other_readout, under_readout
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.readout_rows import ReadoutAgreement, ReadoutDifference
from mechprobe.interventions.result_rows import ConditionResult
from mechprobe.interventions.verdicts.effects import Right, measurable, sign_of
from mechprobe.interventions.verdicts.paired import claimed
from mechprobe.interventions.verdicts.verdict import UNTRAINED, points
from mechprobe.statistics import paired_change
from mechprobe.types import POOLED


def compare_readouts(
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    rows: Sequence[ConditionResult],
    held_out: Sequence[str],
    config: InterveneConfig,
) -> list[ReadoutAgreement]:
    """One record per host whose transplant of the selected set ran under both read-outs.

    Two read-outs disagree on a row (a task, or the pooled tasks) with at least ``min_n`` samples where the accuracies differ
    by 5 points or more and the paired interval of the difference (`mechprobe.statistics.paired_change`) excludes 0. This rule is our own.
    ``right`` holds the outcomes of every condition with the pooled row, and ``rows`` the effects.
    """
    by_name = {row.name: row for row in rows}
    found = []
    for main in (c for c in conditions if c.set_kind == "selected" and c.edit == "transplant"):
        label = under_readout(main.features, other_readout(config))
        other = next((c for c in conditions if (c.model, c.edit, c.features) == (main.model, main.edit, label)), None)
        if other is None:
            continue
        pair = (by_name[main.name], by_name[other.name])
        agreement = ReadoutAgreement(
            model=main.model,
            edit=main.edit,
            features=main.features,
            readout=config.readout_of_transplants,
            other=other_readout(config),
            rows=[_difference(task, pair, right[main.name], right[other.name], config) for task in [*held_out, POOLED]],
            sentence="",
        )
        found.append(agreement.model_copy(update={"sentence": _sentence(agreement, config.base)}))
    return found


def _difference(
    task: str, pair: tuple[ConditionResult, ConditionResult], right: Right, right_other: Right, config: InterveneConfig
) -> ReadoutDifference:
    main, other = pair
    sign = sign_of(main.model, config)
    measured = paired_change(right_other[task], right[task])
    difference = claimed(measured, sign)
    apart = any(measurable(difference, sign=side) for side in (1.0, -1.0))
    return ReadoutDifference(
        task=task,
        n=measured.n,
        effect=claimed(main.accuracy_delta[task], sign),
        effect_other=claimed(other.accuracy_delta[task], sign),
        difference=difference,
        disagree=bool(measured.n >= config.min_n and apart),
    )


def _sentence(found: ReadoutAgreement, base: str) -> str:
    """Where two read-outs disagree, pooled row first; empty where they agree."""
    apart = [row for row in found.rows if row.disagree]
    if not apart:
        return ""
    verb = "gives" if found.model == base else "takes"
    effects = "; ".join(
        f"{UNTRAINED if row.task == POOLED else row.task} {points(*row.effect)} against "
        f"{points(*row.effect_other)}, n = {row.n}"
        for row in apart[::-1]
    )
    return (
        f"The {found.readout} and {found.other} read-outs disagree on what {found.edit} of {found.features} in {found.model} "
        f"{verb} (points under {found.readout} against {found.other}): {effects}. The verdict uses the {found.readout} read-out; "
        f"set intervene.transplant_readout={found.other} to judge the other."
    )
