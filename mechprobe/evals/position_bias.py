"""Position bias of multiple-choice answers: how often each position is chosen, whatever option is there."""

from collections.abc import Sequence

import numpy as np

from mechprobe.evals.choice import MultipleChoice
from mechprobe.evals.result import PositionBias
from mechprobe.evals.tasks import Task
from mechprobe.records import Outcome, Outcomes


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
