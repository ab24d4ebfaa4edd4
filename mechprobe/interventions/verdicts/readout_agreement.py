"""Whether a transplant does the same under the two read-outs that it runs with; the verdict uses one of them."""

from collections.abc import Mapping, Sequence

from mechprobe.interventions.condition_result import ConditionResult
from mechprobe.interventions.conditions.condition import Condition, other_readout, under_readout
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.verdict_result import ReadoutAgreement, ReadoutDifference
from mechprobe.interventions.verdicts.controls import claimed, sign_of
from mechprobe.interventions.verdicts.effects import Right, measurable
from mechprobe.interventions.verdicts.sentences import disagreement_sentence
from mechprobe.statistics import paired_bootstrap
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
    by 5 points or more and the paired percentile bootstrap interval of the difference excludes 0. This rule is our own.

    Args:
        conditions: The plan.
        right: Condition name → outcomes, with the pooled row.
        rows: Effects of all conditions.
        held_out: Tasks that post-training did not see.
        config: Settings.
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
            readout=config.transplant_readout,
            other=other_readout(config),
            rows=[_difference(task, pair, right[main.name], right[other.name], config) for task in [*held_out, POOLED]],
            sentence="",
        )
        found.append(agreement.model_copy(update={"sentence": disagreement_sentence(agreement, config.base)}))
    return found


def _difference(
    task: str, pair: tuple[ConditionResult, ConditionResult], right: Right, right_other: Right, config: InterveneConfig
) -> ReadoutDifference:
    main, other = pair
    sign = sign_of(main.model, config)
    measured = paired_bootstrap(right_other[task], right[task], seed=config.seed)
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
