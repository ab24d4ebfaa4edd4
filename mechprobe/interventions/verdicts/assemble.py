"""From the outcomes of every condition to everything that ``results.json`` holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ConfigError
from mechprobe.evals.tasks import Task
from mechprobe.interventions.conditions.conditions import Condition, readout_name
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.verdicts.effects import Right, condition_results, with_pooled
from mechprobe.interventions.verdicts.leave_one_out import left_out_rows
from mechprobe.interventions.verdicts.readout_agreement import compare_readouts
from mechprobe.interventions.verdicts.sizes import smallest_sets
from mechprobe.interventions.verdicts.verdict import headline, rule_text, verdicts
from mechprobe.selection.never_active import silence
from mechprobe.selection.stage import Selection


def untrained(names: Sequence[str], config: InterveneConfig) -> list[str]:
    """The tasks that post-training never saw; `ConfigError` where none is left to pool."""
    left = [name for name in names if name not in config.trained]
    if not left:
        raise ConfigError(
            "Every task is named in trained; the verdict needs at least one that post-training never saw."
        )
    return left


def about_features(selection: Selection, config: InterveneConfig) -> dict[str, Any]:
    """Which features are edited where, and between which models: what every result says first."""
    return {
        "site": selection.site,
        "pair": [config.base, config.tuned],
        "rule_of_features": selection.rule,
        "ranking": selection.ranking,
        "features": list(selection.features),
        "silent": silence(selection.features, selection.scores),
    }


def assemble(
    selection: Selection,
    conditions: Sequence[Condition],
    letters: Mapping[str, Mapping[str, str]],
    tasks: Sequence[Task],
    config: InterveneConfig,
) -> dict[str, Any]:
    """Everything that ``results.json`` holds but the collateral, from the outcomes alone."""
    names = [task.name for task in tasks]
    held_out = untrained(names, config)
    right: dict[str, Right] = {
        name: {task: [letter == "R" for letter in text] for task, text in row.items()} for name, row in letters.items()
    }
    rows = condition_results(conditions, right, held_out=held_out, base=config.base, seed=config.seed)
    readouts = {c.name: readout_name(c, config) for c in conditions}
    for row in rows:
        row["readout"] = readouts[row["name"]]
        row["unparsed"] = {
            task: text.count("U") / len(text) if text else None for task, text in letters[row["name"]].items()
        }
    judged = verdicts(rows, names, config)
    left_out = {t: ids for t, ids in selection.left_out.items() if config.leave_one_out}
    pooled = {c.name: with_pooled(right[c.name], held_out) for c in conditions if not c.tasks}
    return {
        **about_features(selection, config),
        "note": selection.note,
        "tasks": names,
        "held_out": held_out,
        "trained": [name for name in names if name in config.trained],
        "selecting": [name for name in names if name in selection.scores.tasks],
        "other_tasks": [name for name in names if name not in selection.scores.tasks],
        "n_per_task": {task.name: len(task.samples) for task in tasks},
        "samples": {task.name: [sample.id for sample in task.samples] for task in tasks},
        "readout": {
            "transplant": str(Readout(config.transplant_readout, config.near)),
            "ablate, clamp, scale": str(Readout(config.readout, config.near)),
        },
        "positions": config.positions,
        "control_match": selection.control_match,  # of the sets drawn here: selection.json may be of other features
        "conditions": rows,
        "verdicts": judged,
        "verdict": headline(judged, config),
        "rule": rule_text(config),
        "readouts": compare_readouts(conditions, pooled, rows, held_out, config),
        "left_out": left_out_rows(conditions, right, rows, judged, config, chosen=left_out),
        "sizes": smallest_sets(conditions, pooled, base=config.base, tuned=config.tuned, seed=config.seed),
    }
