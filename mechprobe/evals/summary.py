"""From the outcomes of an evaluate stage to its summary."""

from collections.abc import Sequence

from mechprobe.evals.config import EvaluateConfig
from mechprobe.evals.position_bias import position_bias
from mechprobe.evals.result import Accuracy, EvaluationSummary, ForcedPrefix, PairedTest
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


def summarize(outcomes: Outcomes, tasks: Sequence[Task], config: EvaluateConfig) -> EvaluationSummary:
    """Accuracies, shares of unparsed responses, the forced-prefix baseline, and paired tests against the base.

    Args:
        outcomes: Outcomes of all models, and of the base with the forced prefix if the config asks for it.
        tasks: The evaluated tasks.
        config: Settings of the stage.
    """
    accuracy = {
        model: accuracy_of([record for record in outcomes.records if record.model == model])
        for model in outcomes.models
    }
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
