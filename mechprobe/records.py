"""Samples and outcomes, which stages exchange as JSON lines, and the functions that read and write such files."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from mechprobe.display import Displayed
from mechprobe.environment import require
from mechprobe.errors import InputError
from mechprobe.files import write_text
from mechprobe.json_fields import check_unicode, json_kind
from mechprobe.types import Finish, OutcomeName

if TYPE_CHECKING:
    import pandas as pd

MAX_LINE_CHARS = 8_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a task: a prompt and the right answer.

    Attributes:
        id: Name that is unique among the samples.
        task: Name of the task.
        prompt: The prompt; for a conversation, the text of its last message.
        answer: The right answer.
        messages: The conversation that the chat template renders; None for a plain prompt.
    """

    id: str
    task: str
    prompt: str
    answer: str
    messages: tuple[Mapping[str, Any], ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The sample as a line of a file; without ``messages`` where it has none."""
        fields = {"id": self.id, "task": self.task, "prompt": self.prompt, "answer": self.answer}
        return fields | ({} if self.messages is None else {"messages": [dict(message) for message in self.messages]})

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> "Sample":
        """The sample of a line that `to_json` wrote."""
        messages = item.get("messages")
        return cls(**{**item, "messages": None if messages is None else tuple(messages)})


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
    def code(self) -> str:
        """One letter: R (right), W (wrong), U (unparsed), or C (cut or unfinished, and therefore not scored)."""
        return "C" if self.cut else self.outcome[0].upper()

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
        InputError: The file is missing or not UTF-8, a line is not a JSON object, or a field is not valid Unicode; the
            message names file and line.
    """
    for number, line in read_lines(path, kind="JSON-lines file"):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number} is not a JSON object ({error}); write one object per line.") from None
        if not isinstance(item, dict):
            raise InputError(f"{path}:{number} is {json_kind(item)}; write one JSON object per line.")
        if "\\u" in line:  # the line is UTF-8, so only an escape can stand for half a surrogate pair
            check_unicode(item, f"{path}:{number}")
        yield number, item


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


BASE_AT_MOST, TUNED_AT_LEAST = 0.25, 0.75
"""Shares of right responses between which a sample is gained; our choice. One greedy response has a share of 0 or 1."""


class Outcomes(Displayed):
    """Outcomes of several models on the same samples: one for each, or several where responses were sampled.

    Attributes:
        records: Every outcome, in the order of evaluation.
        samples: The known samples by id.
        text: Settings of the text rule by which the prompts became token ids, where they are not the defaults.
        engine: Where the responses come from, in a sentence; empty where transformers generated them here.
    """

    def __init__(
        self,
        records: Iterable[Outcome],
        samples: Iterable[Sample] = (),
        text: Mapping[str, Any] | None = None,
        *,
        engine: str = "",
    ) -> None:
        self.records, self.text, self.engine = list(records), dict(text or {}), engine
        self.samples = {sample.id: sample for sample in samples}
        self._index: dict[tuple[str, str, str], dict[int, Outcome]] = {}
        for record in self.records:
            self._index.setdefault((record.model, record.task, record.sample_id), {})[record.draw] = record

    def _in_short(self) -> str:
        return f"{len(self.records):,} responses of {', '.join(self.models)} to {', '.join(self.tasks)}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per response: model, task, sample, draw, outcome, how it ended, its length and its text."""
        names = ("model", "task", "sample_id", "draw", "outcome", "finish", "n_response_tokens", "response")
        rows = [{name: getattr(record, name) for name in names} for record in self.records]
        return require("pandas", "The table of outcomes").DataFrame(rows, columns=list(names))

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

    def draws(self, model: str, task: str, sample_id: str) -> list[Outcome]:
        """Outcomes of one model on one sample, by draw; raises `InputError` if it was not evaluated."""
        try:
            found = self._index[model, task, sample_id]
        except KeyError:
            where = f"model {model} on sample {sample_id} of {task}"
            raise InputError(f"There is no outcome of {where}; run `mechprobe evaluate` first.") from None
        return [found[draw] for draw in sorted(found)]

    def record(self, model: str, task: str, sample_id: str) -> Outcome:
        """The only outcome of one model on one sample.

        Raises:
            InputError: It was not evaluated, or it has several sampled outcomes, which `draws` gives.
        """
        found = self.draws(model, task, sample_id)
        if len(found) > 1:
            raise InputError(
                f"Model {model} has {len(found)} sampled responses to sample {sample_id} of {task}, not one; ask for `draws` "
                "or `share_right`."
            )
        return found[0]

    def kept(self, model: str, task: str, sample_id: str) -> Outcome:
        """The outcome whose response stands for a sample: the first right draw, or the first draw where none is right."""
        found = self.draws(model, task, sample_id)
        return next((record for record in found if record.outcome == "right" and self._right_as_kept(record)), found[0])

    def right_draws(
        self, model: str, task: str, sample_ids: Iterable[str] | None = None
    ) -> Bool[ndarray, "sample draw"]:
        """Whether each response of the model is right (all samples of the task for None).

        Raises:
            InputError: A sample was not evaluated, or the samples have different numbers of responses.
        """
        ids = self.sample_ids(task) if sample_ids is None else list(sample_ids)
        rows = [[record.outcome == "right" for record in self.draws(model, task, sample_id)] for sample_id in ids]
        n_draws = len(rows[0]) if rows else 1
        for sample_id, row in zip(ids, rows, strict=True):
            if len(row) != n_draws:
                raise InputError(
                    f"Sample {sample_id} of {task} has {len(row)} responses of model {model}, and others have {n_draws}; run "
                    "`mechprobe evaluate` again."
                )
        return np.array(rows, dtype=bool).reshape(len(rows), n_draws)

    def share_right(self, model: str, task: str, sample_ids: Iterable[str] | None = None) -> list[float]:
        """Share of right responses per sample, 0 or 1 for a single response; raises `InputError` as `right_draws`."""
        return self.right_draws(model, task, sample_ids).mean(axis=1).tolist()

    def right(self, model: str, task: str, sample_ids: Iterable[str] | None = None) -> list[bool]:
        """Whether the model is right, per sample with a single response; raises `InputError` as `record`."""
        ids = self.sample_ids(task) if sample_ids is None else list(sample_ids)
        return [self.record(model, task, sample_id).outcome == "right" for sample_id in ids]

    def gained(
        self,
        task: str,
        *,
        base: str,
        tuned: str,
        base_at_most: float = BASE_AT_MOST,
        tuned_at_least: float = TUNED_AT_LEAST,
    ) -> list[str]:
        """Return G_t, the samples that ``base`` gets wrong and ``tuned`` gets right (arXiv 2604.25011).

        Where several responses were sampled, ``base`` is right in at most the share ``base_at_most`` of them and ``tuned`` in
        at least ``tuned_at_least``. (The paper decodes greedily; these shares are ours.)

        Answers in words to multiple choice are judged over several orders of the options, but only the response to the
        file's order is kept. Samples without a kept response that is right are left out, because G_t consists of right
        responses. (The paper has no such case.)
        """
        ids = self.sample_ids(task)
        pairs = zip(ids, self.share_right(base, task), self.share_right(tuned, task), strict=True)
        return [
            sample_id
            for sample_id, base_share, tuned_share in pairs
            if base_share <= base_at_most
            and tuned_share >= tuned_at_least
            and (kept := self.kept(tuned, task, sample_id)).outcome == "right"
            and self._right_as_kept(kept)
        ]

    def _right_as_kept(self, record: Outcome) -> bool:
        """Whether the kept response of a right outcome is right; under log-likelihood it is the text of the right option."""
        sample = self.samples.get(record.sample_id)
        if not record.chosen or sample is None or record.response == sample.answer:
            return True
        return sample.answer == chr(ord("A") + record.chosen[0])
