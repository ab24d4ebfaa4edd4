"""From the outcomes of an evaluate stage to its summary."""

from collections.abc import Sequence

import numpy as np

from mechprobe.evals.choice import MultipleChoice
from mechprobe.evals.config import EvaluateConfig
from mechprobe.evals.result import Accuracy, Engine, EvaluationSummary, ForcedPrefix, PairedTest, PositionBias
from mechprobe.evals.tasks import Task
from mechprobe.records import Outcome, Outcomes
from mechprobe.statistics import holm, mcnemar_exact, wilson_interval

FORCED = "{model}+prefix"
"""Name under which the outcomes of a model with a forced prefix are kept."""


def accuracy_of(outcomes: Sequence[Outcome]) -> Accuracy:
    """Accuracy per task of one model's outcomes, with Wilson 95 % intervals."""
    right: dict[str, list[bool]] = {}
    for outcome in outcomes:
        right.setdefault(outcome.task, []).append(outcome.outcome == "right")
    return {task: wilson_interval(sum(values), len(values)) for task, values in right.items()}


def summarize(
    outcomes: Outcomes, tasks: Sequence[Task], config: EvaluateConfig, *, engine: Engine | None = None
) -> EvaluationSummary:
    """Accuracies, shares of unparsed responses, the forced-prefix baseline, and paired tests against the base.

    The outcomes are those of all models, and of the base with the forced prefix if the config asks for it.
    """
    accuracy = {m: accuracy_of([record for record in outcomes.records if record.model == m]) for m in outcomes.models}
    forced = None
    if config.force_prefix:
        of_base = accuracy.pop(FORCED.format(model=config.base))
        forced = ForcedPrefix(prefix=config.force_prefix, model=config.base, accuracy=of_base)
    tuned = [model for model in accuracy if model != config.base]
    return EvaluationSummary(
        tasks=outcomes.tasks,
        accuracy=accuracy,
        unparsed={model: {task: _unparsed(outcomes, model, task) for task in outcomes.tasks} for model in accuracy},
        force_prefix=forced,
        mcnemar={model: _against_base(outcomes, model, config.base) for model in tuned if config.base in accuracy},
        position_bias=position_bias(outcomes, tasks),
        engine=engine,
    )


def _unparsed(outcomes: Outcomes, model: str, task: str) -> float:
    found = [r.outcome == "unparsed" for r in outcomes.records if r.model == model and r.task == task]
    return sum(found) / len(found)


def _against_base(outcomes: Outcomes, model: str, base: str) -> dict[str, PairedTest]:
    pairs = {task: (outcomes.right(base, task), outcomes.right(model, task)) for task in outcomes.tasks}
    p = [mcnemar_exact(before, after) for before, after in pairs.values()]
    return {
        task: PairedTest(
            gained=sum(b < a for b, a in zip(before, after, strict=True)),
            lost=sum(b > a for b, a in zip(before, after, strict=True)),
            n=len(before),
            p=raw,
            p_holm=adjusted,
        )
        for (task, (before, after)), raw, adjusted in zip(pairs.items(), p, holm(p), strict=True)
    }


def position_bias(outcomes: Outcomes, tasks: Sequence[Task]) -> dict[str, dict[str, PositionBias]]:
    """Model → task → bias, for the tasks whose options are shown in more than one order; empty without such a task."""
    several = [
        (task, task.scorer)
        for task in tasks
        if isinstance(task.scorer, MultipleChoice) and any(len(task.scorer.orders(s.id)) > 1 for s in task.samples)
    ]
    return {
        model: {
            task.name: _bias(judge, [outcomes.record(model, task.name, sample.id) for sample in task.samples])
            for task, judge in several
        }
        for model in (outcomes.models if several else ())
    }


def _bias(judge: MultipleChoice, records: Sequence[Outcome]) -> PositionBias:
    n_positions = max(len(judge.items[record.sample_id].options) for record in records)
    chosen, right, hit = np.zeros((3, n_positions))
    n_pairs = 0
    for record in records:
        item = judge.items[record.sample_id]
        for order, option in zip(judge.orders(record.sample_id), record.chosen, strict=True):
            n_pairs += 1
            right[order.index(item.right)] += 1
            hit[order.index(item.right)] += option == item.right
            if option >= 0:
                chosen[order.index(option)] += 1
    recall = np.divide(hit, right, out=np.full(n_positions, np.nan), where=right > 0)
    return PositionBias(
        chosen=(chosen / n_pairs).tolist(),
        right=(right / n_pairs).tolist(),
        recall=recall.tolist(),
        recall_std=float(np.nanstd(recall)),
        consistent=sum(len(set(r.chosen)) == 1 and r.chosen[0] >= 0 for r in records) / len(records),
        n_items=len(records),
        n_pairs=n_pairs,
    )
