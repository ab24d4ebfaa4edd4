"""Reads files of finished rollouts, and checks them against the tasks, the models and the tokenizer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mechprobe.errors import InputError
from mechprobe.evals.answering import prompts_of
from mechprobe.evals.result import Engine
from mechprobe.evals.rollouts.answers import (
    FINISHES,
    Answers,
    Question,
    answer_of,
    prompt_ids,
    prompts_hash,
    questions_of,
)
from mechprobe.evals.tasks import Task
from mechprobe.files import sha256_file
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Generated
from mechprobe.records import Sample, read_jsonl, text_field
from mechprobe.types import Finish

DRAW_FIELDS = ("sample", "index", "draw")
IDS_FIELDS = ("response_ids", "token_ids")
PROMPT_IDS_FIELDS = ("prompt_ids", "prompt_token_ids")
_HOW_TO_FINISH = (
    "add 'stop' where an end token or stop text ended the response and 'length' where the limit cut it; engines report it "
    "(finish_reason of a vLLM or OpenAI output), and it cannot be told from the text"
)


def read_rollouts(
    paths: Sequence[Path | str], family: ModelFamily, tasks: Sequence[Task], known: Sequence[Task], labels: Sequence[str]
) -> Answers:
    """Read rollouts of every model on every sample.

    Args:
        paths: JSON-lines files. One file may hold several models, and one model may be in several files.
        family: The models, for their tokenizer and end tokens.
        tasks: The tasks, of which every response must be there.
        known: The tasks with samples that are not evaluated; their responses may be there and are checked alike.
        labels: Names of the models, and of the base with a forced prefix.

    Raises:
        InputError: A file or line is unusable, contradicts the tasks or the tokenizer, or a response is missing; the
            message names file and line.
    """
    reader = _Reader(family.tokenizer, tuple(family.end_token_ids), _by_id(known), tuple(labels))
    for path in map(Path, paths):
        reader.read(path)
    reader.require_one_engine()
    wanted = [q for label in labels for task in tasks for sample in task.samples for q, _ in questions_of(label, task, sample)]
    reader.require_all(wanted, tasks)
    name, version = next(iter(reader.engines), ("", ""))
    engine = Engine(
        generation="import",
        name=name,
        version=version,
        sampling={task.name: sampling_of(task) for task in tasks},
        prompts=prompts_hash(family.tokenizer, tasks),
        n_tokenized=sum(question in reader.tokenized for question in wanted),
        files={Path(path).name: sha256_file(path) for path in paths},
        said=reader.said,
    )
    return Answers({question: reader.found[question] for question in wanted}, engine)


def sampling_of(task: Task) -> dict[str, Any]:
    """How the responses of a task are decoded, as it stands in the manifest."""
    return {**task.sampling.model_dump(mode="json"), "max_new_tokens": task.max_new_tokens, "stop": list(task.stop)}


def _by_id(tasks: Sequence[Task]) -> dict[str, list[tuple[Task, Sample]]]:
    found: dict[str, list[tuple[Task, Sample]]] = {}
    for task in tasks:
        for sample in task.samples:
            found.setdefault(sample.id, []).append((task, sample))
    return found


@dataclass
class _Reader:
    """What the files read so far hold."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    samples: Mapping[str, Sequence[tuple[Task, Sample]]]
    labels: tuple[str, ...]
    found: dict[Question, Generated] = field(default_factory=dict)
    places: dict[Question, str] = field(default_factory=dict)
    tokenized: set[Question] = field(default_factory=set)
    engines: dict[tuple[str, str], str] = field(default_factory=dict)
    """Engine and version → the first place that names them."""
    said: list[dict[str, Any]] = field(default_factory=list)

    def read(self, path: Path) -> None:
        """Read a file; its first line may be a header, an object with ``engine`` and without ``id``."""
        header: dict[str, Any] = {}
        n_lines = 0
        for number, item in read_jsonl(path):
            where = f"{path}:{number}"
            _require_unicode(item, where)
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
            self._model(item, where), task.name, sample.id, self._order(item, task, sample, where), _draw(item, task, where)
        )
        if question in self.places:
            raise InputError(
                f"{where} is a second response of {question}, after {self.places[question]}; remove one, or number "
                "the responses to one prompt from 0 in the field 'sample'."
            )
        finish = _finish(item, where)
        text, ids = _response(item, where), self._ids(item, where)
        answer = answer_of(
            self.tokenizer, text, finish, ids=ids, stop=task.stop, end_ids=self.end_ids, where=where
        )
        _require_limit(answer, ids is not None, task, where)
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
            raise InputError(f"{where}: no task has a sample '{sample_id}'; give the tasks that were asked, or remove the line.")
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
        prompts = prompts_of(task, sample)
        orders = range(len(prompts))
        ids = _first(item, PROMPT_IDS_FIELDS)
        if "prompt" in item or ids is None:
            given = text_field(item, "prompt", where)
            orders = [order for order in orders if given in prompt_texts(self.tokenizer, task, prompts[order])]
            if not orders:
                raise InputError(f"{where}: {_difference(given, prompts)}; ask the task's own prompt.")
        if ids is not None:
            given_ids = _token_ids(ids, "prompt_ids", self.tokenizer, where)
            orders = [order for order in orders if prompt_ids(self.tokenizer, task, prompts[order]) == given_ids]
            if not orders:
                expected = prompt_ids(self.tokenizer, task, prompts[0])
                raise InputError(
                    f"{where}: the prompt ids of sample '{sample.id}' are {_short(given_ids)}, but the task's prompt has "
                    f"{_short(expected)}; check template, BOS and tokenizer of the engine."
                )
        return orders[0]

    def _ids(self, item: dict[str, Any], where: str) -> tuple[int, ...] | None:
        ids = _first(item, IDS_FIELDS)
        return None if ids is None else _token_ids(ids, "response_ids", self.tokenizer, where)

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
        raise InputError(f"The rollouts lack the response of {missing[0]}{more}; {mend}.")


def prompt_texts(tokenizer: PreTrainedTokenizerBase, task: Task, prompt: str) -> tuple[str, ...]:
    """The texts under which a prompt may stand in a file: plain, and as the tokenizer reads it."""
    rendered = tokenizer.decode(list(prompt_ids(tokenizer, task, prompt)))
    return prompt, str(rendered)


def _difference(given: str, prompts: Sequence[str]) -> str:
    """Where a prompt differs from the task's own."""
    own = prompts[0]
    place = next((i for i, (a, b) in enumerate(zip(given, own, strict=False)) if a != b), min(len(given), len(own)))
    return (
        f"the prompt differs from the task's from character {place} on ({given[place : place + 30]!r} there, "
        f"{own[place : place + 30]!r} in the task)"
    )


def _first(item: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)


def _draw(item: dict[str, Any], task: Task, where: str) -> int:
    draw = _first(item, DRAW_FIELDS)
    if draw is None:
        return 0
    if isinstance(draw, bool) or not isinstance(draw, int) or draw < 0:
        raise InputError(f"{where}: the index of the sample is {draw!r}; number the responses to one prompt from 0.")
    if draw >= task.sampling.n:
        raise InputError(
            f"{where} is response {draw} to its prompt, but tasks.sampling.n is {task.sampling.n}; set it to the number of "
            "responses per prompt, with the temperature they were sampled at, and number them from 0."
        )
    return draw


def _finish(item: dict[str, Any], where: str) -> Finish:
    reason = item.get("finish_reason")
    if reason is None:
        raise InputError(f"{where} has no finish_reason; {_HOW_TO_FINISH}.")
    if not isinstance(reason, str) or reason not in FINISHES:
        raise InputError(
            f"{where}: the finish_reason {str(reason)[:40]!r} is none of {', '.join(FINISHES)}; sample this response again, or "
            "write which of them it was."
        )
    return FINISHES[reason]


def _response(item: dict[str, Any], where: str) -> str:
    if "response" not in item:
        raise InputError(f"{where} has no field 'response' (it has {', '.join(sorted(item))}); add it.")
    response = item["response"]
    if not isinstance(response, str):
        raise InputError(f"{where}: 'response' is a {type(response).__name__}; it must be text.")
    return response


def _token_ids(value: Any, name: str, tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise InputError(f"{where}: '{name}' is not a list of token ids; write whole numbers.")
    unknown = [token for token in value if not 0 <= token < len(tokenizer)]
    if unknown:
        raise InputError(
            f"{where}: '{name}' has the id {unknown[0]}, but the tokenizer has {len(tokenizer)} tokens; give the ids of the "
            "models' own tokenizer, or leave them out."
        )
    return tuple(value)


def _require_limit(answer: Generated, exact: bool, task: Task, where: str) -> None:
    """Refuse a response longer than the limit; a cut one may become a little longer where its text is tokenized again."""
    n = len(answer.token_ids)
    if n > task.max_new_tokens and (exact or answer.finish == "stop"):
        raise InputError(
            f"{where}: the response has {n} tokens, but tasks.max_new_tokens is {task.max_new_tokens}; set it to the limit "
            "with which the responses were sampled."
        )


def _require_unicode(item: Mapping[str, Any], where: str) -> None:
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half of a surrogate pair, which is no character; write the text as UTF-8.") from None


def _short(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:8]))
    return f"[{shown}{', ...' if len(ids) > 8 else ''}] ({len(ids)})"


