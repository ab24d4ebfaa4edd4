"""From the outcomes of every condition to the records of ``results.json``."""

from collections.abc import Sequence

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ConfigError
from mechprobe.evals.tasks import Task
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.readout_rows import ReadoutChoice
from mechprobe.interventions.result import EditedSet, InterventionResults
from mechprobe.interventions.result_rows import SmallestEffect
from mechprobe.interventions.verdicts.effects import Measurements, condition_results
from mechprobe.interventions.verdicts.faithfulness import faithfulness_curves
from mechprobe.interventions.verdicts.leave_one_out import left_out_verdicts
from mechprobe.interventions.verdicts.other_rankings import compare_rankings
from mechprobe.interventions.verdicts.paired import ConditionOutcomes, OutcomeCodes, compare_mains
from mechprobe.interventions.verdicts.readout_agreement import compare_readouts
from mechprobe.interventions.verdicts.rivals import compare_rivals
from mechprobe.interventions.verdicts.rule import rule_text
from mechprobe.interventions.verdicts.sizes import smallest_sets
from mechprobe.interventions.verdicts.verdict import headline, judge_edits
from mechprobe.power import smallest_flips
from mechprobe.selection.result import Selection
from mechprobe.types import POOLED


def untrained(names: Sequence[str], config: InterveneConfig) -> list[str]:
    """The tasks that post-training did not see; `ConfigError` where there is none, so that nothing is left to pool."""
    left = [name for name in names if name not in config.trained]
    if not left:
        raise ConfigError("trained names every task, but the verdict needs a task that post-training did not see.")
    return left


def edited_set(selection: Selection, config: InterveneConfig, choice: ReadoutChoice | None = None) -> EditedSet:
    """Which features are edited, at which site, and between which models; ``choice`` is that of the read-out, if a run chose one."""
    return EditedSet(
        site=selection.site,
        pair=(config.base, config.tuned),
        rule_of_features=selection.rule,
        ranking=selection.ranking,
        features=list(selection.features),
        silent=selection.never_active,
        **({} if choice is None else {"readout_choice": choice}),
    )


def effective_draws_of(selection: Selection) -> dict[str, float]:
    """``transplant`` or ``other`` edit → independent sets that its matched random sets are worth."""
    matches = {"transplant": selection.transplant_match, "other": selection.control_match}
    return {edit: match.n_effective for edit, match in matches.items() if match is not None}


def intervention_results(
    selection: Selection,
    conditions: Sequence[Condition],
    codes: OutcomeCodes,
    tasks: Sequence[Task],
    config: InterveneConfig,
    measured: Measurements,
) -> InterventionResults:
    """Judge every main edit of ``selection`` from the outcomes of all conditions on ``tasks``; errors as of `untrained`."""
    names = [task.name for task in tasks]
    held_out = untrained(names, config)
    n_samples = {task.name: len(task.samples) for task in tasks}
    outcomes = {name: ConditionOutcomes.of(row, n_samples) for name, row in codes.items()}
    right = {name: found.right for name, found in outcomes.items()}
    rows = condition_results(conditions, right, codes, held_out, config, measured)
    pooled = {c.name: outcomes[c.name].with_pooled(held_out) for c in conditions if not c.tasks}
    compared = compare_mains(conditions, pooled, config)
    unrelated = measured.texts is not None and not measured.texts.related
    judged = judge_edits(rows, names, config, compared, effective_draws_of(selection), unrelated_text=unrelated)
    pooled_right = {name: found.right for name, found in pooled.items()}
    comparisons = compare_rivals(conditions, pooled_right, rows, config, measured.doses)
    against = {(found.model, found.edit): found.verdict for found in comparisons}
    without_a_task = selection.left_out if config.leave_one_out else {}
    return InterventionResults(
        **edited_set(selection, config, measured.readout).given(),
        note=selection.note,
        tasks=names,
        held_out=held_out,
        trained=[name for name in names if name in config.trained],
        selecting=[name for name in names if name in selection.scores.tasks],
        other_tasks=[name for name in names if name not in selection.scores.tasks],
        n_per_task=n_samples,
        samples={task.name: [sample.id for sample in task.samples] for task in tasks},
        readouts_of_edits={
            "transplant": str(Readout(config.readout_of_transplants, config.near)),
            "ablate, clamp, scale": str(Readout(config.readout, config.near)),
        },
        positions=config.positions,
        control_match=selection.control_match,
        transplant_match=selection.transplant_match,
        conditions=rows,
        verdicts=judged,
        verdict=headline(judged, config, against),
        smallest=smallest_effects(tasks, config),
        rule=rule_text(config, max(task.n_draws for task in tasks)),
        readouts=compare_readouts(conditions, pooled_right, rows, held_out, config),
        left_out=left_out_verdicts(conditions, outcomes, rows, judged, config, chosen=without_a_task),
        sizes=smallest_sets(conditions, pooled_right, base=config.base, tuned=config.tuned),
        comparisons=comparisons,
        other_rankings=compare_rankings(conditions, pooled_right, rows, config),
        curves=faithfulness_curves(conditions, rows),
        collateral=measured.texts,
        changes=measured.changes,
        outcomes_from=selection.outcomes_from,
    )


def smallest_effects(tasks: Sequence[Task], config: InterveneConfig) -> dict[str, SmallestEffect]:
    """Task, and ``pooled`` → the smallest effect of an edit that the paired test can call clear of 0."""
    n_draws = max(task.n_draws for task in tasks)
    pooled = sum(len(task.samples) for task in tasks if task.name not in config.trained)
    rows = {task.name: (len(task.samples), task.n_draws, len(tasks)) for task in tasks}
    rows[POOLED] = (pooled, n_draws, len(config.edits_base) + len(config.edits_tuned))
    found = {}
    for name, (n, draws, n_tests) in rows.items():
        flips = smallest_flips(n, config.alpha / n_tests)
        effect = float("nan") if flips is None else flips / (n * draws)
        found[name] = SmallestEffect(n=n, n_draws=draws, n_tests=n_tests, flips=flips, effect=effect)
    return found
