"""What the selected features cause: effects against controls, and what is folded below them."""

from collections.abc import Sequence

from mechprobe.formatting import interval, listing
from mechprobe.interventions.verdicts.rule import paired_test
from mechprobe.report.result import JsonObject, Picture, Section, Table
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.answers import kind_of
from mechprobe.report.sections.behaviour import responses_per_sample
from mechprobe.report.sections.dictionary_seeds import dictionary_seeds_part
from mechprobe.report.sections.effects import effect_panels, effect_table, effect_tasks, other_rows
from mechprobe.report.sections.parts import counted
from mechprobe.report.tables import interventions as tables
from mechprobe.selection.never_active import never_active_sentences
from mechprobe.types import POOLED

_TITLE = "Interventions: what the selected features cause"


def interventions_section(files: RunFiles) -> Section:
    """Effects of editing the selected features, with the further measurements as parts."""
    results = files.interventions
    if results is None:
        return files.absent("intervene", "interventions", _TITLE)
    n_draws = responses_per_sample(files.evaluation)
    test, tasks = paired_test(n_draws), effect_tasks(results, files.tasks)
    panels = effect_panels(results, files.evaluation, tasks)
    seeds = dictionary_seeds_part(files)
    parts = [
        _evidence(results),
        _sizes(results),
        _left_out(results, test),
        _doses(results, tasks),
        _collateral(results),
        seeds,
    ]
    return Section(
        id="interventions",
        title=_TITLE,
        says=_pooled(results),
        untrusted=not files.trusted,
        paragraphs=_remarks(results, n_draws),
        pictures=[*filter(None, [rivals_picture(results)]), _effects_picture(results)],
        tables=[effect_table(panel, results, tasks, test) for panel in panels],
        parts=[part for part in (*parts, _others(results, tasks), _rule(results)) if part is not None],
    )


def _pooled(results: JsonObject) -> str:
    """The effect and the verdict of every main edit, pooled over the tasks that select."""
    rows = [row for row in results["verdicts"] if row["task"] == POOLED]
    shown = [
        f"{row['edit']} in {row['model']}, {kind_of(results, row)} {interval(row['effect'])}: {row['verdict']}"
        for row in rows
    ]
    n = max((row["n"] for row in rows), default=0)
    if not shown:
        return f"{counted(len(results['conditions']), 'condition')} were measured, and none was judged."
    return f"Effects at {results['site']} in points, pooled over the untrained tasks (n = {n:,}): {'; '.join(shown)}."


def _remarks(results: JsonObject, n_draws: int) -> list[str]:
    trained = listing(results["trained"])
    it = "it" if len(results["trained"]) == 1 else "them"
    seen = f"Post-training saw {trained}, so the pooled row leaves {it} out. " if trained else ""
    kind = "intervals clustered by sample" if n_draws > 1 else "score intervals (Tango 1998)"
    design = (
        f"{seen}Changes are paired, with 95 % {kind}. Selection and evaluation use different samples. "
        f"interventions/results.json contains all {counted(len(results['conditions']), 'condition')}."
    )
    limits = [*never_active_sentences(results), tables.smallest_sentence(results), tables.readout_sentence(results)]
    apart = [str(found["sentence"]) for found in results.get("readouts") or []]
    return [*filter(None, [*limits, *apart, *tables.change_sentences(results)]), design]


def _effects_picture(results: JsonObject) -> Picture:
    caption = (
        f"Change of accuracy when the selected features are edited at {results['site']}, in percentage points, with 95 % intervals. "
        "Grey dots are random feature sets matched on density, decoder norm and the norm that the edit writes; an effect counts only "
        "if it lies outside their range. The black bar is the ceiling: the effect of replacing the whole residual at this site. The "
        "open square is the baseline that forces the beginning of the response."
    )
    return Picture(name="effects", title="Editing the selected features, against controls", caption=caption)


def rivals_picture(results: JsonObject) -> Picture | None:
    """The figure of the set against its rivals and controls, where rivals were measured."""
    if not results.get("comparisons"):
        return None
    caption = (
        "Effect of transplanting the selected features on the pooled accuracy, in the claimed direction, beside what a few directions "
        "of the difference between the models do (rivals, by rank), what is left without the features (complements), and random "
        "controls, of which a ring marks the largest draw. Intervals are 95 %. A rival of rank 1 that reaches the selected set shows that one direction is enough."
    )
    return Picture(name="rivals", title="The selected set against rivals and controls", caption=caption)


def _evidence(results: JsonObject) -> Section:
    judged = [row for row in results["verdicts"] if row.get("sentence")]
    pooled = [row for row in judged if row["task"] == POOLED]
    sentences = [str(row["sentence"]) for row in pooled or judged]
    sentences += [*tables.comparison_sentences(results), *tables.ranking_sentences(results)]
    sentences += [*tables.control_sentences(results), *tables.task_verdict_sentences(results)]
    return Section(
        id="evidence",
        title="Every verdict in full",
        says=f"{counted(len(results['verdicts']), 'verdict')} on edits and tasks, with their controls, rivals and tests.",
        paragraphs=[f"{text[:1].upper()}{text[1:]}" for text in sentences],
    )


def _sizes(results: JsonObject) -> Section | None:
    sentences = [*tables.size_sentences(results), *tables.area_sentences(results)]
    if not sentences:
        return None
    by_rank = (
        "Share of the ceiling that the first k features of the ranking, the first k principal components of the difference between "
        "the models, and k random features carry on the pooled row. Areas are means over the logarithm of k."
    )
    by_task = (
        "Effect of editing the k highest-ranked features, as a share of the ceiling. At 100 %, editing them has the same effect as "
        "replacing the whole residual. Band: 95 % interval of the pooled row."
    )
    return Section(
        id="sizes",
        title="Smallest sufficient sets",
        says=sentences[0],
        paragraphs=sentences[1:],
        pictures=[
            Picture(
                name="faithfulness", title="Share of the ceiling by number of features or directions", caption=by_rank
            ),
            Picture(
                name="share_of_ceiling", title="Share of the ceiling by number of features and task", caption=by_task
            ),
        ],
    )


def _left_out(results: JsonObject, test: str) -> Section | None:
    rows = tables.left_out_rows(results)
    if not rows:
        return None
    head = [
        "edit", "task left out", "n", "features (shared with the full set)", "Jaccard", "effect, points", "share of ceiling %",
        "full set, points", "full set, share %", f"p {test} (Holm)", "verdict",
    ]  # fmt: skip
    note = (
        "Each set was selected without the task on which it is evaluated. Effects are in the claimed direction: a gain in the base "
        "model, a loss in the tuned model. The controls are those of the full set. A set whose Jaccard index with the full set is 0.5 "
        "or more is hardly independent of it."
    )
    held = sum(row["verdict"].startswith("supported") for row in rows)
    return Section(
        id="left-out",
        title="Leave one task out",
        says=f"{held} of {len(rows)} sets that were chosen without a task are supported on that task.",
        paragraphs=tables.left_out_sentences(results),
        tables=[
            Table(
                title="Sets chosen without a task, judged on it",
                head=head,
                rows=[list(row.values()) for row in rows],
                notes=[note],
            )
        ],
    )


def _doses(results: JsonObject, tasks: Sequence[str]) -> Section | None:
    rows = tables.dose_rows(results, tasks)
    if not rows:
        return None
    caption = (
        "The selected set at several strengths, with 95 % intervals. The strength of a clamp is an activation in the units of the "
        "crosscoder."
    )
    cells = [[row["title"], row["value"], *row["cells"]] for row in rows]
    says, *more = tables.dose_sentences(results)
    return Section(
        id="doses",
        title="Dose response",
        says=says,
        paragraphs=more,
        pictures=[Picture(name="doses", title="Change of accuracy by strength of the edit", caption=caption)],
        tables=[Table(title="Change by strength, in points", head=["edit", "strength", *tasks], rows=cells)],
    )


def _collateral(results: JsonObject) -> Section | None:
    rows, about = tables.collateral_rows(results), results.get("collateral")
    if not rows or not about:
        return None
    others, trained = list(results.get("other_tasks") or []), listing(results["trained"])
    caption = (
        "Left: KL divergence of the host's next-token distribution, clean against edited, on unrelated text. Right: change of accuracy "
        "on tasks that were not used for the selection. Replacing the whole residual is shown for comparison, since it measures how "
        "far the two models differ."
    )
    seen = f" (post-training saw {trained})" if trained else ""
    notes = [
        f"Text: {about['source']}; {about['n_texts']:,} texts with {about['n_tokens']:,} predicted tokens. Intervals are bootstrapped "
        "over texts.",
        *([f"Other tasks are those that were not used for the selection{seen}."] if others else []),
    ]
    head = [
        "edit",
        "set",
        "role",
        "KL, nats per token",
        "change of CE, nats per token",
        *(f"{task}, points" for task in others),
    ]
    cells = [[row["title"], row["features"], row["kind"], row["kl"], row["ce"], *row["cells"]] for row in rows]
    says, *more = tables.collateral_sentences(results)
    return Section(
        id="collateral",
        title="Collateral effects",
        says=says,
        paragraphs=more,
        pictures=[Picture(name="collateral", title="Unrelated text and other tasks", caption=caption)],
        tables=[Table(title="Collateral effects by condition", head=head, rows=cells, notes=notes)],
    )


def _others(results: JsonObject, tasks: Sequence[str]) -> Section | None:
    rows = other_rows(results, tasks)
    if not rows:
        return None
    head = ["edit", "set", "role", "features", *tasks]
    return Section(
        id="conditions",
        title="All other conditions",
        says=f"{counted(len(rows), 'further condition')}: ceilings, reconstruction only, opposite edits, rivals, baselines, sizes, doses.",
        tables=[Table(title="Change of accuracy in points", head=head, rows=rows)],
    )


def _rule(results: JsonObject) -> Section | None:
    if not results["rule"]:
        return None
    return Section(
        id="rule",
        title="The verdict rule",
        says="A printed rule gives every verdict; it was fixed before the edits ran.",
        paragraphs=[str(results["rule"])],
    )
