"""Samples and outcomes, which stages exchange as JSON lines, and the functions that read and write such files."""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import InputError
from mechprobe.files import write_text
from mechprobe.types import Finish, OutcomeName

MAX_LINE_CHARS = 8_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a task: a prompt and the right answer."""

    id: str
    task: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The response of one model to one sample, with the verdict of the scorer.

    Attributes:
        sample_id: Id of the sample.
        task: Name of the task.
        model: Name of the model.
        outcome: Verdict of the scorer.
        response: Text of the response.
        n_response_tokens: Length of the response.
        response_ids: Token ids of the response.
        chosen: For multiple choice, the option chosen under each order of the options, as its index in the file; -1 if no
            option was chosen.
        draw: Index of the response among the sampled responses to the same prompt; 0 for greedy decoding.
        finish: How the response ended; the outcome of ``length`` and ``unfinished`` is always ``unparsed``.
        n_thinking_tokens: Number of response tokens up to the end of the thinking block; 0 without one.
    """

    sample_id: str
    task: str
    model: str
    outcome: OutcomeName
    response: str
    n_response_tokens: int
    response_ids: tuple[int, ...] = ()
    chosen: tuple[int, ...] = ()
    draw: int = 0
    finish: Finish = ""
    n_thinking_tokens: int = 0

    @property
    def cut(self) -> bool:
        """Whether the response was cut at its limit or never left its thinking block."""
        return self.finish in ("length", "unfinished")


def read_lines(path: Path | str, *, kind: str) -> Iterator[tuple[int, str]]:
    r"""Yield ``(line number, text)`` for the lines of a UTF-8 file that are not blank; only one line is in memory.

    The text has no line end (``\n``, or ``\r\n``), and no byte order mark at the start of the file. Error messages name
    the ``kind`` of file, for example "JSON-lines file".

    Raises:
        InputError: The file is missing or cannot be read, or a line is not UTF-8 or longer than `MAX_LINE_CHARS` bytes;
            the message names file and line.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a {kind}.")
    try:
        with path.open("rb") as file:
            for number in itertools.count(1):
                raw = file.readline(MAX_LINE_CHARS + 2)
                if not raw:
                    return
                raw = raw.removesuffix(b"\n").removesuffix(b"\r")
                if len(raw) > MAX_LINE_CHARS:
                    raise InputError(f"{path}:{number} is more than {MAX_LINE_CHARS:,} bytes long; split it.")
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise InputError(f"{path}:{number} is not UTF-8; save the file as UTF-8.") from None
                if text.strip():
                    yield number, text
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the path of a {kind}.") from None
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)`` for the lines of a JSON-lines file that are not blank.

    Raises:
        InputError: The file is missing or not UTF-8, or a line is not a JSON object; the message names file and line.
    """
    for number, line in read_lines(path, kind="JSON-lines file"):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number} is not a JSON object ({error}); write one object per line.") from None
        if not isinstance(item, dict):
            raise InputError(f"{path}:{number} is a {type(item).__name__}; write one JSON object per line.")
        yield number, item


def text_field(item: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    """Return the text in the field ``name`` of a record, or ``default`` if the field is absent.

    ``where`` is the file and line of the record, for error messages.

    Raises:
        InputError: The field is absent without a default, is empty, or is not text.
    """
    if name not in item:
        if default is not None:
            return default
        found = ", ".join(sorted(item)) or "nothing"
        raise InputError(f"{where} has no field '{name}' (it has {found}); add it.")
    value = item[name]
    if not isinstance(value, str):
        raise InputError(f"{where}: '{name}' is a {type(value).__name__}; it must be text.")
    if not value.strip():
        raise InputError(f"{where}: '{name}' is empty; fill it in or remove the line.")
    return value


def write_jsonl(path: Path | str, records: Iterable[Any]) -> None:
    """Write dataclasses or dicts as JSON lines, atomically."""
    rows = (record if isinstance(record, dict) else asdict(record) for record in records)
    write_text(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_outcomes(path: Path | str) -> list[Outcome]:
    """Read outcomes written by `write_jsonl`.

    Raises:
        InputError: A line is not an outcome; the message names file and line.
    """
    outcomes = []
    for number, item in read_jsonl(path):
        try:
            tuples = {name: tuple(item.get(name, ())) for name in ("response_ids", "chosen")}
            record = Outcome(**{**item, **tuples})
        except TypeError:
            raise InputError(f"{path}:{number} is not an outcome; run `mechprobe evaluate` again.") from None
        if record.outcome not in ("right", "wrong", "unparsed"):
            raise InputError(
                f"{path}:{number}: the outcome {record.outcome!r} is unknown; run `mechprobe evaluate` again."
            )
        outcomes.append(record)
    return outcomes


class Outcomes:
    """Outcomes of several models on the same samples.

    Attributes:
        records: Every outcome, in the order of evaluation.
        samples: The known samples by id.
        engine: Where the responses come from, in a sentence; empty where transformers generated them here.
    """

    def __init__(self, records: Iterable[Outcome], samples: Iterable[Sample] = (), *, engine: str = "") -> None:
        self.engine = engine
        self.records = list(records)
        self.samples = {sample.id: sample for sample in samples}
        self._index = {(record.model, record.task, record.sample_id): record for record in self.records}

    @property
    def models(self) -> list[str]:
        """Models in order of appearance."""
        return list(dict.fromkeys(record.model for record in self.records))

    @property
    def tasks(self) -> list[str]:
        """Tasks in order of appearance."""
        return list(dict.fromkeys(record.task for record in self.records))

    def sample_ids(self, task: str) -> list[str]:
        """Ids of the samples of a task in order of appearance."""
        return list(dict.fromkeys(record.sample_id for record in self.records if record.task == task))

    def record(self, model: str, task: str, sample_id: str) -> Outcome:
        """Outcome of one model on one sample; raises `InputError` if it was not evaluated."""
        try:
            return self._index[model, task, sample_id]
        except KeyError:
            where = f"model {model} on sample {sample_id} of {task}"
            raise InputError(f"There is no outcome of {where}; run `mechprobe evaluate` first.") from None

    def right(self, model: str, task: str, sample_ids: Iterable[str] | None = None) -> list[bool]:
        """Whether the model is right, per sample (all samples of the task for None); raises `InputError` as `record`."""
        ids = self.sample_ids(task) if sample_ids is None else list(sample_ids)
        return [self.record(model, task, sample_id).outcome == "right" for sample_id in ids]

    def gained(self, task: str, *, base: str, tuned: str) -> list[str]:
        """Return G_t, the samples that ``base`` gets wrong and ``tuned`` gets right (arXiv 2604.25011).

        Answers in words to multiple choice are judged over several orders of the options, but only the response to the
        file's order is kept. Samples whose kept response is not right are left out, because G_t consists of right
        responses. (The paper has no such case.)
        """
        ids = self.sample_ids(task)
        pairs = zip(ids, self.right(base, task), self.right(tuned, task), strict=True)
        return [
            sample_id
            for sample_id, base_right, tuned_right in pairs
            if tuned_right and not base_right and self._right_as_kept(self.record(tuned, task, sample_id))
        ]

    def _right_as_kept(self, record: Outcome) -> bool:
        """Whether the kept response of a right outcome is right; under log-likelihood it is the text of the right option."""
        sample = self.samples.get(record.sample_id)
        if not record.chosen or sample is None or record.response == sample.answer:
            return True
        return sample.answer == chr(ord("A") + record.chosen[0])
