"""Tasks: named sets of samples with a scorer, read from JSON lines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mechprobe.data.config import TextConfig
from mechprobe.data.messages import Message, content_key, content_text, read_messages
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.choice import ChoiceItem, MultipleChoice, choice_item
from mechprobe.evals.config import ChoiceConfig, SamplingConfig
from mechprobe.evals.scorers.parse import AnyScorer, scorer
from mechprobe.evals.scorers.rules import LaterScorer, Scorer
from mechprobe.json_fields import name_field, text_field
from mechprobe.records import Sample, read_jsonl
from mechprobe.types import POOLED, THINK, ThinkTags


@dataclass(frozen=True)
class Task:
    """One task: its samples in file order, and what judges them, a `MultipleChoice` if they have options."""

    name: str
    samples: tuple[Sample, ...]
    scorer: Scorer | MultipleChoice
    max_new_tokens: int = 64
    """Limit on the length of a generated response, in tokens."""
    text: TextConfig = field(default_factory=TextConfig)
    """How prompts become token ids."""
    stop: tuple[str, ...] = ()
    """Texts that end a response; they are not part of it."""
    think: ThinkTags | None = THINK
    """Tags around the thinking of a model. Scorers read what follows the last end tag; None scores whole responses."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How responses are decoded."""

    @property
    def by_likelihood(self) -> bool:
        """Whether the log-likelihoods of options are compared, so that no response is generated."""
        return isinstance(self.scorer, MultipleChoice) and not self.scorer.generated

    @property
    def n_draws(self) -> int:
        """Number of outcomes of every sample; log-likelihoods give one."""
        return 1 if self.by_likelihood else self.sampling.n

    def content_key(self, sample: Sample) -> str:
        """Hash of what a sample asks: samples with equal keys stand on the same side of every split."""
        text = sample.prompt
        if isinstance(self.scorer, MultipleChoice):  # the same question with its options in another order
            item = self.scorer.items[sample.id]
            text = "\n".join([item.stem, *sorted(item.options)])
        return content_key(
            text, None if sample.messages is None else (*sample.messages[:-1], {**sample.messages[-1], "content": text})
        )

    def take(self, n: int | None) -> "Task":
        """The task with its first ``n`` samples; None keeps all."""
        return replace(self, samples=self.samples[:n])


class _Line(NamedTuple):
    """One line of a task file: a sample, or a multiple-choice item."""

    where: str
    id: str
    sample: Sample | None
    item: ChoiceItem | None
    messages: tuple[Message, ...] | None


def load_tasks(  # noqa: PLR0913 - the promised entry point; all but the path are keyword options
    path: Path | str,
    *,
    scorer_spec: AnyScorer = "exact",
    scorers: Mapping[str, AnyScorer] | None = None,
    choice: ChoiceConfig | None = None,
    max_new_tokens: int = 64,
    sampling: SamplingConfig | None = None,
    stop: Sequence[str] = (),
    think: ThinkTags | None = THINK,
    text: TextConfig | None = None,
    names: Sequence[str] | None = None,
    n_per_task: int | None = None,
) -> list[Task]:
    """Read tasks from lines ``{"id", "task", "prompt", "answer"}``. Ids must be unique; ``task`` defaults to the file stem.

    With a chat template, the prompt is the message of a user, and a line may have ``messages`` instead: the conversation up
    to the last user message. A line with ``options`` is a multiple-choice item, whose answer is a letter or an index. Options are compared by
    log-likelihood. With the scorer ``letter``, the model generates a response instead and its option letter is parsed.

    Args:
        path: JSON-lines file.
        scorer_spec: Scorer of all tasks, as `mechprobe.evals.scorers.parse.scorer` takes it.
        scorers: Scorers of single tasks, by task name.
        choice: How multiple-choice items are presented and judged.
        max_new_tokens: Limit on the length of a response, in tokens.
        sampling: How responses are decoded; None is greedy decoding.
        stop: Texts that end a response.
        think: Tags around the thinking of a model, see `Task.think`.
        text: How prompts become token ids; as they are when None.
        names: Tasks to keep, in this order; None keeps all in order of appearance.
        n_per_task: Number of samples to keep of each task, from the top of the file; None keeps all.

    Raises:
        InputError: The file or a line is unusable; the message names file and line.
        ConfigError: A named task is not in the file, or a scorer is unknown or does not suit its task.
    """
    path, text = Path(path), text or TextConfig()
    default, settings = scorer(scorer_spec), choice or ChoiceConfig()
    if text.chat_template and "delimiter" not in settings.model_fields_set:
        settings = settings.replace(delimiter="")  # a response to a rendered prompt begins without a blank
    by_task = _read_lines(path, settings, answers=not isinstance(default, LaterScorer))
    for name in [*(names or ()), *(scorers or ())]:
        if name not in by_task:
            raise ConfigError(f"{path} has no task '{name}'; it has {', '.join(by_task)}.")
    own = {name: scorer(spec) for name, spec in (scorers or {}).items()}
    asked = partial(
        Task,
        max_new_tokens=max_new_tokens,
        text=text,
        stop=tuple(stop),
        think=think,
        sampling=sampling or SamplingConfig(),
    )
    tasks = (_task(name, by_task[name], own.get(name), default, settings, asked) for name in names or by_task)
    return [task.take(n_per_task) for task in tasks]


def _read_lines(path: Path, choice: ChoiceConfig, *, answers: bool) -> dict[str, list[_Line]]:
    by_task: dict[str, list[_Line]] = {}
    seen: dict[str, int] = {}
    for number, fields in read_jsonl(path):
        where = f"{path}:{number}"
        task = name_field(fields, "task", where, default=path.stem)
        if not answers:
            fields = {"answer": "-", **fields}
        line = _line(fields, task, name_field(fields, "id", where, default=f"{path.stem}-{number}"), where, choice)
        if task == POOLED:
            raise InputError(
                f"{where}: a task cannot be named '{POOLED}', which is the name of the pooled row in results; rename it."
            )
        if line.id in seen:
            raise InputError(f"{where}: id '{line.id}' is already used on line {seen[line.id]}; ids must be unique.")
        lines = by_task.setdefault(task, [])
        if lines and (line.item is None) != (lines[0].item is None):
            has = "no options" if line.item is None else "options"
            raise InputError(f"{where} has {has}, unlike {lines[0].where}; give the two kinds different task names.")
        lines.append(line)
        seen[line.id] = number
    if not by_task:
        raise InputError(f"{path} holds no samples; write one JSON object per line.")
    return by_task


def _line(fields: dict[str, Any], task: str, sample_id: str, where: str, choice: ChoiceConfig) -> _Line:
    if "scorer" in fields:  # a data file must not decide which code runs
        raise InputError(f"{where}: a line cannot name its scorer; use --scorer, or tasks.scorers for single tasks.")
    messages = _conversation(fields, where)
    if messages is not None:
        fields = {**fields, "prompt": content_text(messages[-1])}
    if "options" in fields:
        return _Line(where, sample_id, None, choice_item(fields, choice, where), messages)
    prompt, answer = text_field(fields, "prompt", where), text_field(fields, "answer", where)
    return _Line(where, sample_id, Sample(sample_id, task, prompt, answer, messages), None, messages)


def _conversation(fields: Mapping[str, Any], where: str) -> tuple[Message, ...] | None:
    if "messages" not in fields:
        return None
    if "prompt" in fields:
        raise InputError(f"{where} has both 'prompt' and 'messages'; remove one of them.")
    messages = read_messages(fields["messages"], "messages", where)
    if messages[-1]["role"] == "assistant":
        raise InputError(f"{where}: the last message is the assistant's, but the model is to write it; remove it.")
    return messages


def _task(
    name: str,
    lines: Sequence[_Line],
    own: Scorer | None,
    default: Scorer,
    choice: ChoiceConfig,
    asked: Callable[..., Task],
) -> Task:
    items = {line.id: line.item for line in lines if line.item is not None}
    if items:
        judge = _multiple_choice(name, items, own, default, choice)
        return asked(name, tuple(replace(judge.sample(line.id, name), messages=line.messages) for line in lines), judge)
    judge = own or default
    for line in lines:
        defect = judge.check(line.sample.answer) if line.sample else None
        if defect:
            raise InputError(f"{line.where}: {defect} (scorer '{judge.spec}').")
    return asked(name, tuple(line.sample for line in lines if line.sample), judge)


def _multiple_choice(
    name: str, items: Mapping[str, ChoiceItem], own: Scorer | None, default: Scorer, choice: ChoiceConfig
) -> MultipleChoice:
    if own is not None and own.spec != "letter":
        raise ConfigError(
            f"Task '{name}' has options and cannot use the scorer '{own.spec}'; use 'letter', or no scorer to compare "
            "log-likelihoods."
        )
    generated = (own or default).spec == "letter"
    if generated and choice.show == "none":
        raise ConfigError(
            f"Task '{name}' uses the scorer 'letter', but tasks.choice.show = \"none\" hides the letters; change one of them."
        )
    return MultipleChoice(choice, items, generated=generated)


def split_halves(task: Task, *, seed: int, sides: dict[str, bool] | None = None) -> tuple[Task, Task]:
    """Split a task's samples at random into two disjoint halves, ``(selection, evaluation)``.

    Samples that say the same under several ids stand in one half; the selection half is then the largest that does not exceed
    half of the samples in the drawn order. The split depends on the seed and the name of the task.

    Args:
        task: The task.
        seed: Seed of the split.
        sides: What other tasks said, and whether it selects, to keep it on its side. What this task says is added.
    """
    sides = {} if sides is None else sides
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(task.samples):
        groups.setdefault(task.content_key(sample), []).append(index)
    order = np.random.default_rng([seed, *task.name.encode()]).permutation(len(groups))
    keys, room = [list(groups)[number] for number in order], len(task.samples) // 2
    room -= sum(len(groups[key]) for key in keys if sides.get(key))
    for key in keys:
        if key not in sides:
            sides[key] = len(groups[key]) <= room
            room -= len(groups[key]) if sides[key] else 0
    halves = (sorted(i for key in keys if sides[key] == selects for i in groups[key]) for selects in (True, False))
    first, second = (replace(task, samples=tuple(task.samples[index] for index in half)) for half in halves)
    return first, second


def split_tasks(tasks: Sequence[Task], *, seed: int) -> list[tuple[Task, Task]]:
    """`split_halves` of each task; what several tasks ask stands on one side in all of them."""
    sides = dict[str, bool]()
    return [split_halves(task, seed=seed, sides=sides) for task in tasks]
