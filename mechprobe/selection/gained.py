"""G_t, the samples of a task that the base model gets wrong and the tuned model gets right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mechprobe.errors import ConfigError, SelectionError
from mechprobe.records import Outcomes
from mechprobe.selection.config import SelectConfig


@dataclass(frozen=True)
class Gained:
    """G_t of every selection task (arXiv 2604.25011), without held-out samples.

    Attributes:
        ids: Task → samples that are read, at most ``max_samples`` of each.
        sizes: Task → size of its G_t, for tasks that select.
        too_few: Task → size of its G_t, for tasks below ``min_gained``, which do not select.
    """

    ids: dict[str, list[str]]
    sizes: dict[str, int]
    too_few: dict[str, int]


def gained_samples(outcomes: Outcomes, config: SelectConfig, held_out: Mapping[str, Sequence[str]]) -> Gained:
    """G_t of every selection task.

    Args:
        outcomes: Outcomes of base and tuned.
        config: Names of the models and tasks, and sizes.
        held_out: Task → samples that must not select.

    Raises:
        ConfigError: A model or a task has no outcomes, or post-training saw a task that is to select.
        SelectionError: No task has enough gained samples.
    """
    for model in (config.base, config.tuned):
        if model not in outcomes.models:
            raise ConfigError(f"There are no outcomes of model '{model}'; evaluate it first.")
    ids: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    too_few: dict[str, int] = {}
    for task in _selection_tasks(outcomes, config):
        barred = set(held_out.get(task, ()))
        found = [k for k in outcomes.gained(task, base=config.base, tuned=config.tuned) if k not in barred]
        if len(found) >= max(1, config.min_gained):
            ids[task], sizes[task] = found[: config.max_samples], len(found)
        else:
            too_few[task] = len(found)
    if not ids:
        rows = "; ".join(_counts(outcomes, task, n, config, set(held_out.get(task, ()))) for task, n in too_few.items())
        raise SelectionError(
            f"On no task does {config.tuned} get at least {max(1, config.min_gained)} samples right that {config.base} "
            f"gets wrong ({rows}); evaluate more samples, or lower select.min_gained."
        )
    return Gained(ids, sizes, too_few)


def _selection_tasks(outcomes: Outcomes, config: SelectConfig) -> list[str]:
    if config.tasks is not None and not config.tasks:
        raise ConfigError("select.tasks names no task; leave it out to use every task that post-training did not see.")
    seen = [task for task in config.tasks or () if task in config.trained]
    if seen:
        raise ConfigError(
            f"select.tasks and select.trained both name '{seen[0]}', and a task that post-training saw cannot select; "
            "remove it from one of the two."
        )
    tasks = list(config.tasks or (task for task in outcomes.tasks if task not in config.trained))
    unknown = [task for task in tasks if task not in outcomes.tasks]
    if unknown:
        known = ", ".join(outcomes.tasks)
        raise ConfigError(f"There are no outcomes on task '{unknown[0]}' of select.tasks; the tasks are {known}.")
    if not tasks:
        raise ConfigError(
            f"Post-training saw every task ({', '.join(outcomes.tasks)}), so no task is left to select on; "
            "evaluate another task."
        )
    return tasks


def _counts(outcomes: Outcomes, task: str, n_gained: int, config: SelectConfig, barred: set[str]) -> str:
    """Selection samples of a task that each model gets right."""
    ids = [k for k in outcomes.sample_ids(task) if k not in barred]
    right = {model: sum(outcomes.right(model, task, ids)) for model in (config.base, config.tuned)}
    return (
        f"{task}: {n_gained} gained; {config.base} has {right[config.base]} and {config.tuned} {right[config.tuned]} "
        f"of {len(ids)} right"
    )
