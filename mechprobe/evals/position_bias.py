"""Which place the chosen option stands at, whatever the option: the bias that several orders are asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mechprobe.evals.choice import MultipleChoice
from mechprobe.evals.tasks import Task
from mechprobe.records import Outcome, Outcomes


def position_bias(outcomes: Outcomes, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Model → task → bias, for the tasks whose options are shown in more than one order.

    Returns:
        ``chosen`` and ``right``: share of the (item, order) pairs in which the chosen option, and the right one, stood at
        each place; ``recall``: of the pairs whose right option stood there, the share in which it was chosen;
        ``recall_std``: the standard deviation of that over places (RStd, arXiv 2309.03882); ``consistent``: share of items
        with the same option under every order; ``n_items`` and ``n_pairs``.
    """
    turned = [
        task
        for task in tasks
        if isinstance(task.scorer, MultipleChoice) and any(len(task.scorer.orders(s.id)) > 1 for s in task.samples)
    ]
    return {
        model: {
            task.name: _bias(task, [outcomes.record(model, task.name, s.id) for s in task.samples]) for task in turned
        }
        for model in (outcomes.models if turned else ())
    }


def _bias(task: Task, records: Sequence[Outcome]) -> dict[str, Any]:
    judge = task.scorer
    assert isinstance(judge, MultipleChoice), "only multiple choice has places"
    places = max(len(judge.items[record.sample_id].options) for record in records)
    chosen, right, hit = np.zeros((3, places))
    n_pairs = 0
    for record in records:
        item = judge.items[record.sample_id]
        for order, option in zip(judge.orders(record.sample_id), record.chosen, strict=True):
            n_pairs += 1
            right[order.index(item.right)] += 1
            hit[order.index(item.right)] += option == item.right
            if option >= 0:
                chosen[order.index(option)] += 1
    recall = np.divide(hit, right, out=np.full(places, np.nan), where=right > 0)
    return {
        "chosen": (chosen / n_pairs).tolist(),
        "right": (right / n_pairs).tolist(),
        "recall": recall.tolist(),
        "recall_std": float(np.nanstd(recall)),
        "consistent": sum(len(set(record.chosen)) == 1 and record.chosen[0] >= 0 for record in records) / len(records),
        "n_items": len(records),
        "n_pairs": n_pairs,
    }
