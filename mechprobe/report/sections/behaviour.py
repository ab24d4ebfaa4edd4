"""What the models can do: accuracy of every model on every task, clean and with the residual of another model."""

import math

from mechprobe.evals.result import Accuracy, EvaluationSummary
from mechprobe.formatting import interval, listing, ordered, p_value, percent
from mechprobe.report.result import AccuracyRow, BehaviourSection, CeilingRow, CeilingsSection, JsonObject
from mechprobe.report.run_files import RunFiles
from mechprobe.statistics import Interval

N_ERRORS = 3.0
"""Number of standard errors by which two accuracies must differ to be mentioned as different."""


def ordered_accuracy(files: RunFiles) -> dict[str, Accuracy]:
    """Model → task → accuracy, in the order of the report; empty without an evaluation."""
    found = files.evaluation.accuracy if files.evaluation else {}
    return {name: ordered(value, files.tasks) for name, value in ordered(found, files.models).items()}


def behaviour_section(files: RunFiles) -> BehaviourSection | None:
    """The section, or None if the evaluation has not run."""
    evaluation = files.evaluation
    if evaluation is None:
        return None
    accuracy, forced = ordered_accuracy(files), evaluation.force_prefix
    return BehaviourSection(
        models=list(accuracy),
        rows=_rows(accuracy, evaluation),
        forced=forced.label if forced else None,
        unparsed={
            model: listing(f"{task} {percent(share)} %" for task, share in shares.items() if share)
            for model, shares in evaluation.unparsed.items()
        },
    )


def _rows(accuracy: dict[str, Accuracy], evaluation: EvaluationSummary) -> list[AccuracyRow]:
    forced, rows = evaluation.force_prefix, []
    for task, first in next(iter(accuracy.values())).items():
        tests = [evaluation.mcnemar.get(model, {}).get(task) for model in accuracy]
        rows.append(
            AccuracyRow(
                task=task,
                n=first.n,
                cells=[interval(accuracy[model].get(task)) for model in accuracy],
                forced=interval(forced.accuracy.get(task)) if forced else None,
                p=[p_value(test.p_holm if test else None) for test in tests],
            )
        )
    return rows


def behaviour_sentences(accuracy: dict[str, Accuracy], base: str) -> list[str]:
    """For each tuned model, the tasks on which it is above or below the base by more than `N_ERRORS` standard errors."""
    if base not in accuracy:
        return []
    sentences = []
    for model, found in accuracy.items():
        if model == base:
            continue
        above = [task for task in found if exceeds(found[task], accuracy[base][task])]
        below = [task for task in found if exceeds(accuracy[base][task], found[task])]
        parts = [f"{word} {base} on {listing(tasks)}" for word, tasks in (("above", above), ("below", below)) if tasks]
        where = " and ".join(parts) or f"neither above nor below {base} on any task"
        sentences.append(f"{model} is {where}, by more than three standard errors of the difference.")
    return sentences


def exceeds(better: Interval, worse: Interval) -> bool:
    """Whether one accuracy exceeds another by more than `N_ERRORS` standard errors of their difference.

    The standard error is that of independent proportions, √(p(1−p)/n + q(1−q)/m).
    """
    p, q = better.value, worse.value
    error = math.sqrt(p * (1 - p) / better.n + q * (1 - q) / worse.n)
    return p - q > N_ERRORS * error and p > q


def ceilings_section(files: RunFiles) -> CeilingsSection | None:
    """The section, or None if `mechprobe localize` has not run."""
    ceilings = files.ceilings
    if ceilings is None:
        return None
    tasks = list(ceilings["tasks"])
    return CeilingsSection(
        tasks=tasks,
        base=ceilings["pair"][0],
        tuned=ceilings["pair"][1],
        chosen=ceilings["chosen"],
        reason=ceilings["reason"],
        rows=[
            CeilingRow(
                site=site,
                chosen=site == ceilings["chosen"],
                sufficiency_share=percent(value["sufficiency_share"]),
                necessity_share=percent(value["necessity_share"]),
                sufficiency=[interval(value["sufficiency"].get(task)) for task in tasks],
                necessity=[interval(value["necessity"].get(task)) for task in tasks],
            )
            for site, value in ceilings["sites"].items()
        ],
    )


def ceilings_sentence(ceilings: JsonObject) -> str:
    """Both ceilings of the chosen site."""
    chosen, (base, tuned) = ceilings["chosen"], ceilings["pair"]
    site, n = ceilings["sites"][chosen], max(ceilings["n"].values())
    return (
        f"At site {chosen}, {base} with the residual of {tuned} reaches {percent(site['sufficiency_share'])} % of the gain "
        f"(sufficiency), and {tuned} with the residual of {base} loses {percent(site['necessity_share'])} % of it "
        f"(necessity; n = {n} per task)."
    )
