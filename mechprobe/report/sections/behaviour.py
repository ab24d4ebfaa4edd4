"""What the models can do: accuracy of every model on every task, clean and with the residual of another model."""

import math

from mechprobe.evals.result import Accuracy, EvaluationSummary
from mechprobe.formatting import MISSING, decimal, interval, listing, ordered, p_value, percent, remark, scored_remark
from mechprobe.localization.result import SiteCeilings
from mechprobe.report.result import AccuracyRow, BehaviourSection, CeilingRow, CeilingsSection, SampledTable
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
    accuracy, forced, rows = ordered_accuracy(files), evaluation.force_prefix, []
    for task, first in next(iter(accuracy.values())).items():
        tests = [evaluation.mcnemar.get(model, {}).get(task) for model in accuracy]
        rows.append(
            AccuracyRow(
                task=task,
                n=first.n,
                cells=[_cell(accuracy[model].get(task), evaluation, model, task) for model in accuracy],
                forced=interval(forced.accuracy.get(task)) + remark(cut=forced.cut.get(task)) if forced else None,
                p=[p_value(test.p_holm if test else None) for test in tests],
            )
        )
    unparsed = {
        model: listing(f"{task} {percent(share)} %" for task, share in shares.items() if share)
        for model, shares in evaluation.unparsed.items()
    }
    label = forced.label if forced else None
    sampled = _sampled_table(evaluation, list(accuracy), list(next(iter(accuracy.values()))))
    return BehaviourSection(models=list(accuracy), rows=rows, forced=label, unparsed=unparsed, sampled=sampled)


def _sampled_table(evaluation: EvaluationSummary, models: list[str], tasks: list[str]) -> SampledTable | None:
    """pass@k, majority, length, repetition and token budgets per model and task; None without sampling."""
    found = {(m, t): evaluation.sampled[m][t] for m in models for t in tasks if t in evaluation.sampled.get(m, {})}
    if not found:
        return None
    n = max(row.n for row in found.values())
    sizes = sorted({k for row in found.values() for k in row.pass_at if k > 1})
    columns = [
        *(f"pass@{k} %" for k in sizes),
        f"maj@{n} %",
        "mean tokens",
        "repeated 4-grams %",
        "right within tokens, %",
    ]
    rows = [
        [
            model,
            task,
            *(interval(row.pass_at.get(k)) for k in sizes),
            interval(row.majority),
            decimal(evaluation.response_tokens.get(model, {}).get(task), 1),
            percent(row.repetition),
            ", ".join(f"{point.tokens}: {percent(point.right)}" for point in row.budgets),
        ]
        for (model, task), row in found.items()
    ]
    return SampledTable(n=n, columns=columns, rows=rows)


def _cell(found: Interval | None, evaluation: EvaluationSummary, model: str, task: str) -> str:
    if found is None:
        return MISSING
    cut, unparsed = (shares.get(model, {}).get(task) for shares in (evaluation.cut, evaluation.unparsed))
    return interval(found) + scored_remark(found, cut, unparsed)


def engine_sentences(files: RunFiles) -> list[str]:
    """Where responses come from that transformers did not generate here: those that were scored, and those that selected."""
    scored = files.evaluation.engine if files.evaluation else None
    selected = (files.interventions or files.selection or {}).get("outcomes_from")
    return list(dict.fromkeys(filter(None, [scored.sentence if scored else "", selected])))


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
    tasks, (base, tuned), chosen = ceilings.tasks, ceilings.pair, ceilings.chosen
    rows = [
        CeilingRow(
            site=site,
            chosen=site == chosen,
            sufficiency_share=percent(found.sufficiency_share),
            necessity_share=percent(found.necessity_share),
            sufficiency=[interval(found.sufficiency.get(t)) + remark(cut=found.sufficiency_cut.get(t)) for t in tasks],
            necessity=[interval(found.necessity.get(t)) + remark(cut=found.necessity_cut.get(t)) for t in tasks],
        )
        for site, found in ceilings.sites.items()
    ]
    return CeilingsSection(tasks=tasks, base=base, tuned=tuned, chosen=chosen, reason=ceilings.reason, rows=rows)


def ceilings_sentence(ceilings: SiteCeilings) -> str:
    """Both ceilings of the chosen site."""
    chosen, (base, tuned) = ceilings.chosen, ceilings.pair
    sufficiency, necessity = map(percent, ceilings.sites[chosen].shares)
    return (
        f"At site {chosen}, {base} with the residual of {tuned} reaches {sufficiency} % of the gain (sufficiency), and {tuned} "
        f"with the residual of {base} loses {necessity} % of it (necessity; n = {max(ceilings.n.values())} per task)."
    )
