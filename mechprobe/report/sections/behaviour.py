"""What the models can do: accuracy of every model on every task, clean and with the residual of another model."""

import math

from mechprobe.evals.result import Accuracy, EvaluationSummary
from mechprobe.formatting import MISSING, decimal, interval, listing, ordered, p_value, percent, remark, scored_remark
from mechprobe.interventions.verdicts.rule import paired_test
from mechprobe.localization.result import SiteCeilings
from mechprobe.report.result import Picture, Section, Table
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.parts import counted
from mechprobe.statistics import Interval

_BEHAVIOUR = "Behaviour: what the models can do"
_CEILINGS = "Ceilings: the effect of replacing the whole residual"

N_ERRORS = 3.0
"""Number of standard errors by which two accuracies must differ to be mentioned as different."""


def ordered_accuracy(files: RunFiles) -> dict[str, Accuracy]:
    """Model → task → accuracy, in the order of the report; empty without an evaluation."""
    found = files.evaluation.accuracy if files.evaluation else {}
    return {name: ordered(value, files.tasks) for name, value in ordered(found, files.models).items()}


def behaviour_section(files: RunFiles) -> Section:
    """What the models can do: accuracy of every model on every task."""
    evaluation = files.evaluation
    if evaluation is None:
        return files.absent("evaluate", "behaviour", _BEHAVIOUR)
    accuracy = ordered_accuracy(files)
    says, *more = behaviour_sentences(accuracy, files.base)[::-1] or [
        f"{counted(len(accuracy), 'model')} answered the tasks."
    ]
    tables = [_accuracy_table(evaluation, accuracy)]
    n_draws = responses_per_sample(evaluation)
    if n_draws > 1:
        tables.append(_sampled_table(evaluation, list(accuracy), list(next(iter(accuracy.values()))), n_draws))
    kind = (
        f"Share of right responses, {n_draws} to each sample, with 95 % intervals clustered by sample."
        if n_draws > 1
        else "Accuracy of greedy responses, with Wilson 95 % intervals."
    )
    caption = f"{kind} Unparsed responses count as wrong."
    picture = Picture(name="accuracy", title="Accuracy per task and model", caption=caption)
    return Section(id="behaviour", title=_BEHAVIOUR, says=says, paragraphs=more, pictures=[picture], tables=tables)


def _accuracy_table(evaluation: EvaluationSummary, accuracy: dict[str, Accuracy]) -> Table:
    forced, (first, *others) = evaluation.force_prefix, accuracy
    rows = []
    for task, found in accuracy[first].items():
        tests = [evaluation.mcnemar.get(model, {}).get(task) for model in others]
        cells = [_cell(accuracy[model].get(task), evaluation, model, task) for model in accuracy]
        cells += [interval(forced.accuracy.get(task)) + remark(cut=forced.cut.get(task))] if forced else []
        rows.append([task, f"{found.n:,}", *cells, *(p_value(test.p_holm if test else None) for test in tests)])
    test = paired_test(responses_per_sample(evaluation))
    unparsed = [
        f"Unparsed responses of {model}: {shown}."
        for model, shares in evaluation.unparsed.items()
        if (
            shown := listing(
                f"{task} {percent(share) if share >= 0.005 else '< 1'} %" for task, share in shares.items() if share
            )
        )
    ]
    head = [
        "task", "n", *(f"{model} %" for model in accuracy), *([f"{forced.label} %"] if forced else []),
        *(f"p {model} vs {first}" for model in others),
    ]  # fmt: skip
    note = f"p: exact {test} test on the same samples, Holm-adjusted over tasks."
    return Table(title="Accuracy by task", head=head, rows=rows, notes=[note, *unparsed])


def responses_per_sample(evaluation: EvaluationSummary | None) -> int:
    """How many responses each sample has."""
    rows = [row for found in (evaluation.sampled if evaluation else {}).values() for row in found.values()]
    return max((row.n for row in rows), default=1)


def _sampled_table(evaluation: EvaluationSummary, models: list[str], tasks: list[str], n: int) -> Table:
    """pass@k, majority, length, repetition and token budgets per model and task."""
    found = {(m, t): evaluation.sampled[m][t] for m in models for t in tasks if t in evaluation.sampled.get(m, {})}
    sizes = sorted({k for row in found.values() for k in row.pass_at if k > 1})
    columns = [f"maj@{n} %", "mean tokens", "repeated 4-grams %", "right within tokens, %"]
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
    note = (
        "pass@k: unbiased estimate. maj: most frequent answer, a tie counts as its expected value. Right within tokens: responses "
        "that are right and end within the budget."
    )
    title = f"Sampled responses, {n} to each sample"
    return Table(
        title=title, head=["model", "task", *(f"pass@{k} %" for k in sizes), *columns], rows=rows, notes=[note]
    )


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


def ceilings_section(files: RunFiles) -> Section:
    """The effect of replacing the whole residual at every site."""
    ceilings = files.ceilings
    if ceilings is None:
        return files.absent("localize", "ceilings", _CEILINGS)
    tasks, (base, tuned) = ceilings.tasks, ceilings.pair
    rows = []
    for site, found in ceilings.sites.items():
        for title, share, cells, cut in (
            (f"{base} ← {tuned} (sufficiency)", found.sufficiency_share, found.sufficiency, found.sufficiency_cut),
            (f"{tuned} ← {base} (necessity)", found.necessity_share, found.necessity, found.necessity_cut),
        ):
            shown = [interval(cells.get(task)) + remark(cut=cut.get(task)) for task in tasks]
            rows.append([site, title, percent(share), *shown])
    head = ["site", "residual replaced", "% of gain", *(f"{task} %" for task in tasks)]
    chosen = [place for place, row in enumerate(rows) if row[0] == ceilings.chosen]
    caption = (
        "At each site, the whole residual of one model is replaced by that of the other model on the same tokens, before any "
        "dictionary is trained. Edits of features at a site can be evidence in both directions only if the points of sufficiency "
        "reach the solid line and those of necessity fall to the dotted line. The chosen site is shaded."
    )
    return Section(
        id="ceilings",
        title=_CEILINGS,
        says=ceilings_sentence(ceilings),
        paragraphs=[ceilings.reason],
        pictures=[Picture(name="ceilings", title="Sufficiency and necessity per site", caption=caption)],
        tables=[Table(title="Accuracy under replacement, by site", head=head, rows=rows, chosen=chosen)],
    )


def ceilings_sentence(ceilings: SiteCeilings) -> str:
    """Both ceilings of the chosen site."""
    chosen, (base, tuned) = ceilings.chosen, ceilings.pair
    sufficiency, necessity = map(percent, ceilings.sites[chosen].shares)
    return (
        f"At site {chosen}, {base} with the residual of {tuned} reaches {sufficiency} % of the gain (sufficiency), and {tuned} "
        f"with the residual of {base} loses {necessity} % of it (necessity; n = {max(ceilings.n.values())} per task)."
    )
