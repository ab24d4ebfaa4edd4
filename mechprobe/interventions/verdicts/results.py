"""From the outcomes of every condition to the records of ``results.json``."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ConfigError
from mechprobe.evals.tasks import Task
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import EditedSet, InterventionResults
from mechprobe.interventions.verdicts.comparison import compare_rivals
from mechprobe.interventions.verdicts.effects import Measurements, Right, condition_results, with_pooled
from mechprobe.interventions.verdicts.faithfulness import faithfulness_curves
from mechprobe.interventions.verdicts.leave_one_out import left_out_verdicts
from mechprobe.interventions.verdicts.readout_agreement import compare_readouts
from mechprobe.interventions.verdicts.sizes import smallest_sets
from mechprobe.interventions.verdicts.verdict import headline, judge_edits, rule_text
from mechprobe.selection.result import Selection

OutcomeCodes = Mapping[str, Mapping[str, str]]
"""Condition → task → one code per response: R (right), W (wrong), U (unparsed) or C (cut or unfinished). The draws of a sample
follow each other."""


def right_of(codes: str, n_samples: int) -> Bool[np.ndarray, "sample draw"]:
    """Whether each response is right, from the codes of a task with ``n_samples`` samples."""
    return np.array([code == "R" for code in codes], dtype=bool).reshape(n_samples, -1 if n_samples else 1)


def untrained(names: Sequence[str], config: InterveneConfig) -> list[str]:
    """The tasks that post-training did not see; `ConfigError` where there is none, so that nothing is left to pool."""
    left = [name for name in names if name not in config.trained]
    if not left:
        raise ConfigError("trained names every task, but the verdict needs a task that post-training did not see.")
    return left


def edited_set(selection: Selection, config: InterveneConfig) -> EditedSet:
    """Which features are edited, at which site, and between which models."""
    return EditedSet(
        site=selection.site,
        pair=(config.base, config.tuned),
        rule_of_features=selection.rule,
        ranking=selection.ranking,
        features=list(selection.features),
        silent=selection.never_active,
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
    right: dict[str, Right] = {
        name: {task: right_of(text, n_samples[task]) for task, text in row.items()} for name, row in codes.items()
    }
    rows = condition_results(conditions, right, codes, held_out, config, measured)
    judged = judge_edits(rows, names, config, effective_draws_of(selection))
    pooled = {c.name: with_pooled(right[c.name], held_out) for c in conditions if not c.tasks}
    comparisons = compare_rivals(conditions, pooled, rows, config, measured.doses)
    against = {(found.model, found.edit): found.verdict for found in comparisons}
    without_a_task = selection.left_out if config.leave_one_out else {}
    return InterventionResults(
        **dict(edited_set(selection, config)),
        note=selection.note,
        tasks=names,
        held_out=held_out,
        trained=[name for name in names if name in config.trained],
        selecting=[name for name in names if name in selection.scores.tasks],
        other_tasks=[name for name in names if name not in selection.scores.tasks],
        n_per_task=n_samples,
        samples={task.name: [sample.id for sample in task.samples] for task in tasks},
        readouts_of_edits={
            "transplant": str(Readout(config.transplant_readout, config.near)),
            "ablate, clamp, scale": str(Readout(config.readout, config.near)),
        },
        positions=config.positions,
        control_match=selection.control_match,
        transplant_match=selection.transplant_match,
        conditions=rows,
        verdicts=judged,
        verdict=headline(judged, config, against),
        rule=rule_text(config, max(task.n_draws for task in tasks)),
        readouts=compare_readouts(conditions, pooled, rows, held_out, config),
        left_out=left_out_verdicts(conditions, right, rows, judged, config, chosen=without_a_task),
        sizes=smallest_sets(conditions, pooled, base=config.base, tuned=config.tuned, seed=config.seed),
        comparisons=comparisons,
        curves=faithfulness_curves(conditions, rows),
        collateral=measured.texts,
        changes=measured.changes,
        outcomes_from=selection.outcomes_from,
    )
