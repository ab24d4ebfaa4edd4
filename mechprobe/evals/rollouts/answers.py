"""Questions to an engine outside mechprobe, and its answers as the scorers take them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import Ids, PromptEncoder
from mechprobe.data.prompts import Prompt
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.answering import prompts_of
from mechprobe.evals.result import Engine
from mechprobe.evals.tasks import Task
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Generated
from mechprobe.models.sampling import cut_at_stop
from mechprobe.records import Sample
from mechprobe.types import Finish

FINISHES: dict[str, Finish] = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}
"""Finish reasons of vLLM, SGLang, transformers and text-generation-inference."""
_UNFINISHED_CHARACTER = "\ufffd"
"""What a token that ends within a character decodes to; some engines leave it out."""


class Question(NamedTuple):
    """One response that is wanted: of a model, to a sample, under one order of the options, in one draw."""

    model: str
    task: str
    sample_id: str
    order: int
    draw: int

    def __str__(self) -> str:
        order = f" in order {self.order} of the options" if self.order else ""
        draw = f" (response {self.draw})" if self.draw else ""
        return f"model {self.model} on sample {self.sample_id} of task {self.task}{order}{draw}"


@dataclass(frozen=True)
class Answers:
    """All answers of an engine, and what is known of it."""

    found: Mapping[Question, Generated]
    engine: Engine

    def respond(self, model: str, task: Task, sample: Sample) -> list[Generated]:
        """The responses to one sample: all draws of its first prompt, then those of the next."""
        return [self.found[question] for question, _ in questions_of(model, task, sample)]


def questions_of(model: str, task: Task, sample: Sample) -> Iterator[tuple[Question, Prompt]]:
    """The questions about one sample, each with its prompt."""
    for order, prompt in enumerate(prompts_of(task, sample)):
        for draw in range(task.n_draws):
            yield Question(model, task.name, sample.id, order, draw), prompt


class PromptReader:
    """The token ids of prompts, as `mechprobe.evals.answering.run_tasks` gives them to a model, and their texts."""

    def __init__(self, family: ModelFamily) -> None:
        self._family = family
        self._encoders: dict[TextConfig, PromptEncoder] = {}

    def encoder(self, task: Task) -> PromptEncoder:
        """What turns the prompts of a task into token ids."""
        if task.text not in self._encoders:
            self._encoders[task.text] = PromptEncoder.of(self._family.tokenizers, task.text)
        return self._encoders[task.text]

    def ids(self, task: Task, prompt: Prompt) -> Ids:
        """Token ids of a prompt."""
        return self.encoder(task).encode(prompt)

    def texts(self, task: Task, prompt: Prompt) -> tuple[str, ...]:
        """The texts that name a prompt: rendered, as its ids read, and plain, unless it has earlier messages."""
        encoder = self.encoder(task)
        plain = [prompt.prompt] if prompt.messages is None or len(prompt.messages) == 1 else []
        return (encoder.render(prompt), str(encoder.tokenizer.decode(list(encoder.encode(prompt)))), *plain)

    def hash(self, tasks: Sequence[Task]) -> str:
        """sha256 of the token ids of every prompt."""
        ids = [
            [task.name, sample.id, [self.ids(task, prompt) for prompt in prompts_of(task, sample)]]
            for task in tasks
            for sample in task.samples
        ]
        return sha256_bytes(dump_json(ids).encode())


def sampling_of(task: Task) -> dict[str, Any]:
    """How the responses of a task are decoded, as it stands in the manifest."""
    return {**task.sampling.model_dump(mode="json"), "max_new_tokens": task.max_new_tokens, "stop": list(task.stop)}


def require_responses(tasks: Sequence[Task], generation: str) -> None:
    """Raise `ConfigError` for a task that compares the log-likelihoods of options, which no other engine gives."""
    for task in tasks:
        if task.by_likelihood:
            raise ConfigError(
                f"Task {task.name} compares log-likelihoods of options, which evaluate.generation = '{generation}' does not "
                "give; score it with 'letter', so that the model answers in words, or use evaluate.generation = 'hf'."
            )


def answer_of(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    finish: Finish,
    *,
    ids: Sequence[int] | None,
    stop: Sequence[str],
    end_ids: Sequence[int],
    where: str,
) -> Generated:
    """A response as mechprobe's own generation would give it: without the end token, and up to the first stop text.

    Args:
        tokenizer: Tokenizer of the models.
        text: Text of the response.
        finish: How it ended.
        ids: Its token ids; None tokenizes the text.
        stop: Texts that end a response.
        end_ids: Tokens that end a response.
        where: Place of the answer, for error messages.

    Raises:
        InputError: The ids do not decode to the text.
    """
    own = list(ids) if ids is not None else list(tokenizer(text, add_special_tokens=False).input_ids)
    kept = list(takewhile(lambda token: token not in end_ids, own))
    decoded, kept_ids, stopped = cut_at_stop(tokenizer, kept, stop)
    same = _same_text(tokenizer, own, kept, text, stop)
    if ids is not None and not same:
        raise InputError(
            f"{where}: the response ids decode to {decoded[:60]!r}, but the response is {text[:60]!r}; give the ids of this "
            "response by the tokenizer of the models, or leave them out."
        )
    ended = stopped or len(kept) < len(own)
    if same:
        return Generated(decoded, kept_ids, "stop" if ended else finish)
    cut = _cut(text, stop)  # the tokenizer does not give every text back; the scorers read what the engine wrote
    return Generated(cut, kept_ids, "stop" if ended or cut != text else finish)


def _same_text(
    tokenizer: PreTrainedTokenizerBase, own: Sequence[int], kept: Sequence[int], text: str, stop: Sequence[str]
) -> bool:
    """Whether ids decode to a text, with or without special tokens, stop text, and the blank of the first word."""
    wanted = _comparable(text, stop)
    forms = (
        tokenizer.decode(list(kept), skip_special_tokens=True),
        tokenizer.decode(list(kept), skip_special_tokens=False),
        tokenizer.decode(list(own), skip_special_tokens=False),
    )
    return any(_comparable(str(form), stop) in (wanted, wanted.removeprefix(" ")) for form in forms)


def _comparable(text: str, stop: Sequence[str]) -> str:
    return _cut(text, stop).rstrip(_UNFINISHED_CHARACTER)


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]
