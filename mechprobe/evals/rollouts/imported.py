"""Reads files of finished rollouts, and checks them against the tasks, the models and the tokenizer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mechprobe.errors import InputError
from mechprobe.evals.answering import prompts_of
from mechprobe.evals.result import Engine
from mechprobe.evals.rollouts.answers import Answers, PromptReader, Question, answer_of, questions_of, sampling_of
from mechprobe.evals.rollouts.fields import (
    IDS_FIELDS,
    PROMPT_IDS_FIELDS,
    draw_of,
    finish_of,
    first_of,
    require_limit,
    require_prefix,
    response_text,
    token_ids,
)
from mechprobe.evals.rollouts.inspect_logs import InspectLog
from mechprobe.evals.tasks import Task
from mechprobe.files import sha256_file
from mechprobe.json_fields import text_field
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Generated
from mechprobe.records import Sample, read_jsonl


def read_rollouts(
    paths: Sequence[Path | str | InspectLog],
    family: ModelFamily,
    tasks: Sequence[Task],
    known: Sequence[Task],
    labels: Mapping[str, str],
) -> Answers:
    """Read rollouts of every model on every sample.

    Args:
        paths: JSON-lines files, or logs of Inspect. One file may hold several models, and one model may be in several files.
        family: The models, for their tokenizer and end tokens.
        tasks: The tasks, of which every response must be there.
        known: The tasks with samples that are not evaluated; their responses may be there and are checked alike.
        labels: Name of each model in the outcomes, and the prefix that was forced on its responses, or an empty text.

    Raises:
        InputError: A file or line is unusable, contradicts the tasks or the tokenizer, or a response is missing; the
            message names file and line.
    """
    reader = _Reader(PromptReader(family), family.tokenizer, tuple(family.end_token_ids), _by_id(known), labels)
    for path in paths:
        reader.read(path)
    reader.require_one_engine()
    wanted = [
        q for label in labels for task in tasks for sample in task.samples for q, _ in questions_of(label, task, sample)
    ]
    reader.require_all(wanted, tasks)
    name, version = next(iter(reader.engines), ("", ""))
    engine = Engine(
        generation="import",
        name=name,
        version=version,
        sampling={task.name: sampling_of(task) for task in tasks},
        prompts=reader.prompts.hash(tasks),
        n_tokenized=sum(question in reader.tokenized for question in wanted),
        files={Path(path).name: sha256_file(Path(path)) for path in paths},
        said=reader.said,
    )
    return Answers({question: reader.found[question] for question in wanted}, engine)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"{path}:{number}", item) for number, item in read_jsonl(path))


def _by_id(tasks: Sequence[Task]) -> dict[str, list[tuple[Task, Sample]]]:
    found: dict[str, list[tuple[Task, Sample]]] = {}
    for task in tasks:
        for sample in task.samples:
            found.setdefault(sample.id, []).append((task, sample))
    return found


@dataclass
class _Reader:
    """What the files read so far hold."""

    prompts: PromptReader
    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    samples: Mapping[str, Sequence[tuple[Task, Sample]]]
    labels: Mapping[str, str]
    found: dict[Question, Generated] = field(default_factory=dict)
    places: dict[Question, str] = field(default_factory=dict)
    tokenized: set[Question] = field(default_factory=set)
    engines: dict[tuple[str, str], str] = field(default_factory=dict)
    """Engine and version → the first place that names them."""
    said: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def read(self, source: Path | str | InspectLog) -> None:
        """Read a file; its first line may be a header, an object with ``engine`` and without ``id``."""
        path = Path(source)
        self.files.append(str(path))
        header: dict[str, Any] = {}
        n_lines = 0
        lines = source.lines() if isinstance(source, InspectLog) else _lines(path)
        for where, item in lines:
            if n_lines == 0 and not header and "engine" in item and "id" not in item:
                header = item
                self.said.append(header)
                self._check_sampling(header, where)
                continue
            n_lines += 1
            self._line(item, header, where)
        if not n_lines:
            raise InputError(f"{path} holds no rollouts; write one JSON object per line.")

    def _line(self, item: dict[str, Any], header: Mapping[str, Any], where: str) -> None:
        task, sample = self._sample(item, where)
        question = Question(
            self._model(item, where),
            task.name,
            sample.id,
            self._order(item, task, sample, where),
            draw_of(item, task, where),
        )
        if question in self.places:
            raise InputError(
                f"{where} is a second response of {question}, after {self.places[question]}; remove one, or number "
                "the responses to one prompt from 0 in the field 'sample'."
            )
        finish = finish_of(item, where)
        text, ids = response_text(item, where), self._ids(item, where)
        answer = answer_of(self.tokenizer, text, finish, ids=ids, stop=task.stop, end_ids=self.end_ids, where=where)
        prefix = self.labels[question.model]
        require_prefix(answer, prefix, where)
        n_prefix = len(self.prompts.encoder(task).encode_text(prefix))
        require_limit(answer, task.max_new_tokens + n_prefix, ids is not None, where)
        engine = tuple(str(item.get(key, header.get(key, "")) or "") for key in ("engine", "version"))
        self.engines.setdefault((engine[0], engine[1]), where)
        self.places[question], self.found[question] = where, answer
        if ids is None:
            self.tokenized.add(question)

    def _sample(self, item: dict[str, Any], where: str) -> tuple[Task, Sample]:
        sample_id = text_field(item, "id", where)
        named = text_field(item, "task", where, default="")
        of_id = self.samples.get(sample_id, ())
        if not of_id:
            raise InputError(
                f"{where}: no task has a sample '{sample_id}'; give the tasks that were asked, or remove the line."
            )
        matching = [pair for pair in of_id if named in ("", pair[0].name)]
        if len(matching) != 1:
            names = ", ".join(task.name for task, _ in of_id)
            problem = f"is not in task '{named}', but in {names}" if named else f"is in several tasks ({names})"
            raise InputError(f"{where}: sample '{sample_id}' {problem}; write the task's name in the field 'task'.")
        return matching[0]

    def _model(self, item: dict[str, Any], where: str) -> str:
        model = text_field(item, "model", where)
        if model not in self.labels:
            raise InputError(
                f"{where}: '{model}' is none of the models {', '.join(self.labels)}; write the model's name in the run."
            )
        return model

    def _order(self, item: dict[str, Any], task: Task, sample: Sample, where: str) -> int:
        """The order of the options that a line's prompt shows; 0 without options."""
        prompts, ids = prompts_of(task, sample), first_of(item, PROMPT_IDS_FIELDS)
        orders = range(len(prompts))
        if "prompt" in item or ids is None:
            given = text_field(item, "prompt", where)
            orders = [order for order in orders if given in self.prompts.texts(task, prompts[order])]
            if not orders:
                raise InputError(f"{where}: {_difference(given, self.prompts.texts(task, prompts[0])[-1])}.")
        if ids is not None:
            given_ids = token_ids(ids, "prompt_ids", self.tokenizer, where)
            orders = [order for order in orders if self.prompts.ids(task, prompts[order]) == given_ids]
            if not orders:
                expected = self.prompts.ids(task, prompts[0])
                raise InputError(
                    f"{where}: the prompt ids of sample '{sample.id}' are {_short(given_ids)}, but the task's prompt has "
                    f"{_short(expected)}; check template, BOS and tokenizer of the engine."
                )
        return orders[0]

    def _ids(self, item: dict[str, Any], where: str) -> tuple[int, ...] | None:
        ids = first_of(item, IDS_FIELDS)
        return None if ids is None else token_ids(ids, "response_ids", self.tokenizer, where)

    def _check_sampling(self, header: Mapping[str, Any], where: str) -> None:
        """Compare the sampling settings of a header with those of the tasks, which the edited models will use."""
        said = header.get("sampling") or {}
        if not isinstance(said, dict):
            raise InputError(f"{where}: 'sampling' is a {type(said).__name__}; it must be an object.")
        for task in {id(task): task for pairs in self.samples.values() for task, _ in pairs}.values():
            own = {**sampling_of(task), "max_tokens": task.max_new_tokens}
            for name in ("temperature", "top_p", "top_k", "max_tokens", "max_new_tokens", "n"):
                value = said.get(name)
                if name == "top_k" and value == -1:  # how vLLM writes that nothing is cut off
                    value = 0
                if value is not None and value != own[name]:
                    setting = "max_new_tokens" if name == "max_tokens" else name
                    setting = f"tasks.{setting}" if setting == "max_new_tokens" else f"tasks.sampling.{setting}"
                    raise InputError(
                        f"{where}: the responses were sampled with {name} {value}, but {setting} is {own[name]}; set "
                        f"{setting} = {value}, because edited models are asked with this setting."
                    )

    def require_one_engine(self) -> None:
        """Raise `InputError` where the models were sampled by different engines, whose numerics differ."""
        if len(self.engines) > 1:
            (first, place), (second, other), *_ = self.engines.items()
            names = [" ".join(filter(None, engine)) or "an engine that is not named" for engine in (first, second)]
            raise InputError(
                f"{other} comes from {names[1]} and {place} from {names[0]}; sample all models with one engine, because a "
                "comparison across engines also shows their numerical differences."
            )

    def require_all(self, wanted: Sequence[Question], tasks: Sequence[Task]) -> None:
        """Raise `InputError` for the first response that is missing."""
        missing = [question for question in wanted if question not in self.found]
        if not missing:
            return
        n = next(task.sampling.n for task in tasks if task.name == missing[0].task)
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        of_model = any(question.model == missing[0].model for question in self.found)
        mend = "add them" if of_model or n > 1 else f"add the rollouts of {missing[0].model}"
        if missing[0].model.endswith("+prefix") and not of_model:
            mend = 'add them, or set evaluate.force_prefix = "" to do without this baseline'
        elif missing[0].draw > 0:
            mend = f"add them, or set tasks.sampling.n, which is {n}, to the number of responses per prompt"
        files = " and ".join(self.files)
        raise InputError(f"The rollouts in {files} lack the response of {missing[0]}{more}; {mend}.")


def _difference(given: str, own: str) -> str:
    """Where a prompt differs from the task's own."""
    place = next((i for i, (a, b) in enumerate(zip(given, own, strict=False)) if a != b), min(len(given), len(own)))
    return (
        f"the prompt differs from the task's from character {place} on ({given[place : place + 30]!r} there, "
        f"{own[place : place + 30]!r} in the task); ask the task's own prompt, plain or rendered by the text rule"
    )


def _short(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:8]))
    return f"[{shown}{', ...' if len(ids) > 8 else ''}] ({len(ids)})"
