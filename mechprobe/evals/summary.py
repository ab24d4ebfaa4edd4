"""From the outcomes of an evaluate stage to its summary."""

from collections.abc import Callable, Sequence

import numpy as np

from mechprobe.evals.choice import MultipleChoice
from mechprobe.evals.config import EvaluateConfig
from mechprobe.evals.result import (
    Accuracy,
    Engine,
    EvaluationSummary,
    ForcedPrefix,
    PairedTest,
    PositionBias,
    SampledOutcomes,
)
from mechprobe.evals.sampled import sampled_outcomes
from mechprobe.evals.tasks import Task
from mechprobe.records import Outcome, Outcomes
from mechprobe.statistics import clustered_difference, holm, paired_p, share_interval

FORCED = "{model}+prefix"
"""Name under which the outcomes of a model with a forced prefix are kept."""


def accuracy_of(outcomes: Sequence[Outcome]) -> Accuracy:
    """Share of right responses per task of one model's outcomes (avg@n), with 95 % intervals over samples."""
    models = {record.model for record in outcomes}
    assert len(models) <= 1, f"outcomes of one model are expected, not of {models}"
    found = Outcomes(outcomes)
    return {task: share_interval(found.right_draws(model, task)) for model in models for task in found.tasks}


def summarize(
    outcomes: Outcomes, tasks: Sequence[Task], config: EvaluateConfig, *, engine: Engine | None = None
) -> EvaluationSummary:
    """Accuracies, shares of cut and unparsed responses, the forced-prefix baseline, and paired tests against the base.

    The outcomes are those of all models, and of the base with the forced prefix if the config asks for it.
    """
    accuracy = {m: accuracy_of([record for record in outcomes.records if record.model == m]) for m in outcomes.models}
    forced = None
    if config.force_prefix:
        label = FORCED.format(model=config.base)
        cut, unparsed = (shares(outcomes, label, kind) for kind in (is_cut, is_unparsed))
        forced = ForcedPrefix(
            prefix=config.force_prefix, model=config.base, accuracy=accuracy.pop(label), cut=cut, unparsed=unparsed
        )
    tuned = [model for model in accuracy if model != config.base]
    return EvaluationSummary(
        tasks=outcomes.tasks,
        accuracy=accuracy,
        unparsed={model: shares(outcomes, model, is_unparsed) for model in accuracy},
        cut={model: shares(outcomes, model, is_cut) for model in accuracy},
        response_tokens={model: _response_tokens(outcomes, model) for model in accuracy},
        force_prefix=forced,
        mcnemar={model: _against_base(outcomes, model, config.base) for model in tuned if config.base in accuracy},
        position_bias=position_bias(outcomes, tasks),
        engine=engine,
        sampled={model: found for model in accuracy if (found := _sampled(outcomes, model, tasks))},
    )


def _sampled(outcomes: Outcomes, model: str, tasks: Sequence[Task]) -> dict[str, SampledOutcomes]:
    """Task → what several responses say, for the tasks with more than one to each sample."""
    found = [(task, [outcomes.draws(model, task.name, s.id) for s in task.samples]) for task in tasks if task.samples]
    return {task.name: sampled_outcomes(task, draws) for task, draws in found if len(draws[0]) > 1}


def is_cut(outcome: Outcome) -> bool:
    """Whether a response was cut at the limit or stopped inside its thinking."""
    return outcome.cut


def is_unparsed(outcome: Outcome) -> bool:
    """Whether a response ended by itself and the scorer finds no answer in it."""
    return outcome.outcome == "unparsed" and not outcome.cut


def shares(outcomes: Outcomes | Sequence[Outcome], model: str, kind: Callable[[Outcome], bool]) -> dict[str, float]:
    """Task → share of one model's outcomes that are of a kind."""
    records = outcomes.records if isinstance(outcomes, Outcomes) else outcomes
    found: dict[str, list[bool]] = {}
    for record in records:
        if record.model == model:
            found.setdefault(record.task, []).append(kind(record))
    return {task: sum(values) / len(values) for task, values in found.items()}


def _response_tokens(outcomes: Outcomes, model: str) -> dict[str, float]:
    """Task → mean length of the responses of one model that were generated."""
    lengths: dict[str, list[int]] = {}
    for record in outcomes.records:
        if record.model == model and record.finish:
            lengths.setdefault(record.task, []).append(record.n_response_tokens)
    return {task: sum(values) / len(values) for task, values in lengths.items()}


def _against_base(outcomes: Outcomes, model: str, base: str) -> dict[str, PairedTest]:
    pairs = {task: (outcomes.right_draws(base, task), outcomes.right_draws(model, task)) for task in outcomes.tasks}
    p = [paired_p(before, after) for before, after in pairs.values()]
    return {
        task: PairedTest(
            gained=int((before.sum(axis=1) < after.sum(axis=1)).sum()),
            lost=int((before.sum(axis=1) > after.sum(axis=1)).sum()),
            n=len(before),
            p=raw,
            p_holm=adjusted,
            difference=clustered_difference(before.mean(axis=1), after.mean(axis=1)) if before.shape[1] > 1 else None,
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
            task.name: _bias(judge, [r for s in task.samples for r in outcomes.draws(model, task.name, s.id)])
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
        n_items=len({record.sample_id for record in records}),
        n_pairs=n_pairs,
    )
