"""Tasks: named sets of samples with a scorer, read from JSON lines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.scoring import Scorer, scorer
from mechprobe.records import Sample, read_jsonl, text_field


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: As in the file's ``task`` field.
        samples: Items in file order.
        scorer: How a response is judged.
        max_new_tokens: Longest response that is generated, in tokens.
    """

    name: str
    samples: tuple[Sample, ...]
    scorer: Scorer
    max_new_tokens: int = 64

    def take(self, n: int | None) -> "Task":
        """The first ``n`` samples (all for None)."""
        return replace(self, samples=self.samples[:n])

    def keep(self, ids: set[str]) -> "Task":
        """The samples whose id is in ``ids``."""
        return replace(self, samples=tuple(sample for sample in self.samples if sample.id in ids))


def load_tasks(
    path: Path | str,
    *,
    scorer_spec: str = "exact",
    max_new_tokens: int = 64,
    names: Sequence[str] | None = None,
    n_per_task: int | None = None,
) -> list[Task]:
    """Read ``{"id", "task", "prompt", "answer"}`` lines; ids must be unique, ``task`` defaults to the file's stem.

    Args:
        path: JSON-lines file.
        scorer_spec: See `mechprobe.evals.scoring.scorer`.
        max_new_tokens: Longest response, in tokens.
        names: Tasks to keep, in this order; None keeps all in order of appearance.
        n_per_task: Samples kept of each, from the top of the file; None keeps all.

    Raises:
        InputError: The file or a line cannot be used; the text names file and line.
        ConfigError: A named task is not in the file, or the scorer is unknown.
    """
    path = Path(path)
    judge = scorer(scorer_spec)
    by_task: dict[str, list[Sample]] = {}
    seen: dict[str, int] = {}
    for number, item in read_jsonl(path):
        where = f"{path}:{number}"
        task = text_field(item, "task", where, default=path.stem)
        sample = Sample(
            id=text_field(item, "id", where, default=f"{path.stem}-{number}"),
            task=task,
            prompt=text_field(item, "prompt", where),
            answer=text_field(item, "answer", where),
        )
        if sample.id in seen:
            raise InputError(f"{where}: id '{sample.id}' stands on line {seen[sample.id]} too; ids must be unique.")
        seen[sample.id] = number
        by_task.setdefault(task, []).append(sample)
    if not by_task:
        raise InputError(f"{path} holds no samples; write one JSON object a line.")
    for name in names or ():
        if name not in by_task:
            raise ConfigError(f"{path} has no task '{name}'; it has {', '.join(by_task)}.")
    chosen = list(names) if names else list(by_task)
    return [Task(name, tuple(by_task[name][:n_per_task]), judge, max_new_tokens) for name in chosen]


def split_halves(task: Task, *, seed: int) -> tuple[Task, Task]:
    """Two disjoint halves of a task's samples, ``(selection, evaluation)``, drawn by seed and task name."""
    draw = np.random.default_rng([seed, *task.name.encode()])
    order = draw.permutation(len(task.samples))
    first = {task.samples[index].id for index in order[: len(order) // 2]}
    second = {sample.id for sample in task.samples} - first
    return task.keep(first), task.keep(second)
