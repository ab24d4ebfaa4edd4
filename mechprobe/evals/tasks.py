"""Tasks: named sets of samples with a scorer, read from JSON lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.choice import ChoiceConfig, ChoiceItem, MultipleChoice, choice_item
from mechprobe.evals.scorers.parse import AnyScorer, scorer
from mechprobe.evals.scorers.scorer import Scorer
from mechprobe.records import Sample, read_jsonl, text_field
from mechprobe.types import POOLED


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: As in the file's ``task`` field.
        samples: Items in file order.
        scorer: How a response is judged; a `MultipleChoice` where the items have options.
        max_new_tokens: Longest response that is generated, in tokens.
    """

    name: str
    samples: tuple[Sample, ...]
    scorer: Scorer | MultipleChoice
    max_new_tokens: int = 64

    @property
    def by_likelihood(self) -> bool:
        """Whether options' log-likelihoods decide, so that nothing is generated."""
        return isinstance(self.scorer, MultipleChoice) and not self.scorer.generated

    def take(self, n: int | None) -> "Task":
        """The first ``n`` samples (all for None)."""
        return replace(self, samples=self.samples[:n])

    def keep(self, ids: set[str]) -> "Task":
        """The samples whose id is in ``ids``."""
        return replace(self, samples=tuple(sample for sample in self.samples if sample.id in ids))


@dataclass(frozen=True)
class _Line:
    """One line of a task file: a sample, or an item with options."""

    where: str
    id: str
    sample: Sample | None
    item: ChoiceItem | None


def load_tasks(
    path: Path | str,
    *,
    scorer_spec: AnyScorer = "exact",
    scorers: Mapping[str, AnyScorer] | None = None,
    choice: ChoiceConfig | None = None,
    max_new_tokens: int = 64,
    names: Sequence[str] | None = None,
    n_per_task: int | None = None,
) -> list[Task]:
    """Read ``{"id", "task", "prompt", "answer"}`` lines; ids must be unique, ``task`` defaults to the file's stem.

    Lines with ``options`` are multiple choice: their answer is a letter or an index. They are judged by log-likelihood,
    or, with the scorer ``letter``, by what the model answers in words.

    Args:
        path: JSON-lines file.
        scorer_spec: Scorer of all tasks, see `mechprobe.evals.scorers.parse.scorer`; or a function of response and answer.
        scorers: Scorers of single tasks, by task name.
        choice: How lines with options are asked and judged.
        max_new_tokens: Longest response, in tokens.
        names: Tasks to keep, in this order; None keeps all in order of appearance.
        n_per_task: Samples kept of each, from the top of the file; None keeps all.

    Raises:
        InputError: The file or a line cannot be used; the text names file and line.
        ConfigError: A named task is not in the file, or a scorer is unknown or does not fit its task.
    """
    path = Path(path)
    whole, settings = scorer(scorer_spec), choice or ChoiceConfig()
    by_task = _read_lines(path, settings)
    for name in [*(names or ()), *(scorers or ())]:
        if name not in by_task:
            raise ConfigError(f"{path} has no task '{name}'; it has {', '.join(by_task)}.")
    own = {name: scorer(spec) for name, spec in (scorers or {}).items()}
    chosen = list(names) if names else list(by_task)
    return [
        _task(name, by_task[name], own.get(name), whole, settings, max_new_tokens).take(n_per_task) for name in chosen
    ]


def _read_lines(path: Path, choice: ChoiceConfig) -> dict[str, list[_Line]]:
    by_task: dict[str, list[_Line]] = {}
    seen: dict[str, int] = {}
    for number, fields in read_jsonl(path):
        where = f"{path}:{number}"
        task = text_field(fields, "task", where, default=path.stem)
        line = _line(fields, task, text_field(fields, "id", where, default=f"{path.stem}-{number}"), where, choice)
        if task == POOLED:
            raise InputError(
                f"{where}: no task can be named '{POOLED}'; results have a row of that name over all tasks."
            )
        if line.id in seen:
            raise InputError(f"{where}: id '{line.id}' stands on line {seen[line.id]} too; ids must be unique.")
        first = by_task.setdefault(task, [line])[0]
        if (line.item is None) != (first.item is None):
            has = "has no options" if line.item is None else "has options"
            raise InputError(f"{where} {has}, unlike {first.where}; give lines of two kinds two task names.")
        if first is not line:
            by_task[task].append(line)
        seen[line.id] = number
    if not by_task:
        raise InputError(f"{path} holds no samples; write one JSON object a line.")
    return by_task


def _line(fields: dict[str, Any], task: str, sample_id: str, where: str, choice: ChoiceConfig) -> _Line:
    if "scorer" in fields:  # reading data must never decide which code runs
        raise InputError(f"{where}: a line cannot name its scorer; give --scorer, or tasks.scorers for single tasks.")
    if "options" in fields:
        return _Line(where, sample_id, None, choice_item(fields, choice, where))
    sample = Sample(
        id=sample_id,
        task=task,
        prompt=text_field(fields, "prompt", where),
        answer=text_field(fields, "answer", where),
    )
    return _Line(where, sample_id, sample, None)


def _task(
    name: str, lines: Sequence[_Line], own: Scorer | None, whole: Scorer, choice: ChoiceConfig, max_new_tokens: int
) -> Task:
    items = {line.id: line.item for line in lines if line.item is not None}
    if items:
        if own is not None and own.spec != "letter":
            raise ConfigError(
                f"Task '{name}' has options: it takes no scorer (log-likelihoods decide), or letter, and not '{own.spec}'."
            )
        in_words = (own or whole).spec == "letter"
        if in_words and choice.show == "none":
            raise ConfigError(
                f"Task '{name}' is to be answered by letter, which tasks.choice.show = \"none\" does not show."
            )
        judge = MultipleChoice(choice, items, generated=in_words)
        return Task(name, tuple(judge.asked(key, name) for key in items), judge, max_new_tokens)
    judge = own or whole
    for line in lines:
        wrong = judge.check(line.sample.answer) if line.sample else None
        if wrong:
            raise InputError(f"{line.where}: {wrong} (scorer '{judge.spec}').")
    return Task(name, tuple(line.sample for line in lines if line.sample), judge, max_new_tokens)


def split_halves(task: Task, *, seed: int) -> tuple[Task, Task]:
    """Two disjoint halves of a task's samples, ``(selection, evaluation)``, drawn by seed and task name."""
    draw = np.random.default_rng([seed, *task.name.encode()])
    order = draw.permutation(len(task.samples))
    first = {task.samples[index].id for index in order[: len(order) // 2]}
    second = {sample.id for sample in task.samples} - first
    return task.keep(first), task.keep(second)
