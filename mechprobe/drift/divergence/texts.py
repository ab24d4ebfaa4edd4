"""What each model reads: the sequences of the token stream, the predictions that count, and the cell that each belongs to.

A prediction belongs to the token that it predicts, so the first response token is predicted at the last prompt position and
counts as response. Only base and the model itself read a model's own continuations. Prompts stand in several sequences, and
each model's prompt predictions are counted in the first of them only.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from mechprobe.data.stream import TokenStream
from mechprobe.data.tokens import TokenSequence, special_token_ids
from mechprobe.drift.divergence.columns import BUCKETS, CLASSES, Source, source_of
from mechprobe.drift.divergence.config import DriftConfig
from mechprobe.evals.skills.labels import labels
from mechprobe.features.examples.promoted import token_text
from mechprobe.formatting import short_list
from mechprobe.records import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

"""Where a continuation comes from: the model itself, base, or the prompts file; ``prompt`` are the prompts themselves."""

CLASS_RULE = (
    "digits, operators: every character of the token is a digit, or one of drift.operators. procedural: the token is a whole word "
    "of drift.procedural, in any case. special: a special token of the tokenizer. other: the rest, also parts of words."
)
BUCKET_RULE = (
    "prompt: tokens of prompts. first and answer: the first and the last tenth of a response, rounded up to whole tokens; where "
    "they overlap, answer. middle: the rest. The token that ends a response is not part of the stream."
)
_GENERATED = re.compile(r"(?P<model>.+)@(?P<temperature>\d+(\.\d+)?)")


class Origin(NamedTuple):
    """The model that wrote a continuation, and its sampling temperature; (``""``, None) for the prompts file."""

    model: str
    temperature: float | None

    @classmethod
    def of(cls, sequence: TokenSequence) -> "Origin":
        """The origin of a sequence of the stream."""
        match = _GENERATED.fullmatch(sequence.source or "")
        return cls(match["model"], float(match["temperature"])) if match else cls(sequence.source or "", None)


@dataclass(frozen=True)
class DriftTexts:
    """The sequences of a run of `mechprobe.drift.divergence`.

    Attributes:
        stream: The token stream.
        base: Name of base.
        models: Names of the other models.
        chosen: Indices of the sequences that are read, in the order of the stream.
    """

    stream: TokenStream
    base: str
    models: tuple[str, ...]
    chosen: tuple[int, ...]

    @classmethod
    def of(cls, stream: TokenStream, base: str, models: Sequence[str], config: DriftConfig) -> "DriftTexts":
        """The sequences of at most ``config.max_prompts`` prompts that base or one of the models reads."""
        known = {base, *models, ""}
        readable = [index for index, sequence in enumerate(stream.sequences) if Origin.of(sequence).model in known]
        prompts = sorted({stream.sequences[index].prompt_id for index in readable})
        if config.max_prompts is not None and config.max_prompts < len(prompts):
            order = np.random.default_rng([config.seed, 1]).permutation(len(prompts))
            drawn = {prompts[index] for index in order[: config.max_prompts]}
            readable = [index for index in readable if stream.sequences[index].prompt_id in drawn]
        readable = [index for index in readable if len(stream.sequences[index].ids) > 1]
        return cls(stream, base, tuple(models), tuple(readable))

    @cached_property
    def origins(self) -> dict[int, Origin]:
        """Origin of every chosen sequence."""
        return {index: Origin.of(self.stream.sequences[index]) for index in self.chosen}

    def readers(self, index: int) -> tuple[str, ...]:
        """The tuned models that read a sequence, beside base."""
        writer = self.origins[index].model
        return self.models if writer in ("", self.base) else (writer,)

    def source(self, index: int) -> Source:
        """Source of the continuation in a sequence, for each of its readers."""
        return source_of(self.origins[index].model, self.base)

    def label(self, index: int) -> str:
        """Source and temperature of the continuation in a sequence as one word: ``own@1.0``, ``gold``."""
        temperature = self.origins[index].temperature
        return self.source(index) if temperature is None else f"{self.source(index)}@{temperature:g}"

    @cached_property
    def first_of_prompt(self) -> dict[str, frozenset[int]]:
        """By model, the sequences in which its prompt predictions are counted."""
        found: dict[str, dict[str, int]] = {name: {} for name in self.models}
        for index in sorted(self.chosen, key=lambda index: (self.source(index) == "own", index)):
            for name in self.readers(index):
                found[name].setdefault(self.stream.sequences[index].prompt_id, index)
        return {name: frozenset(places.values()) for name, places in found.items()}

    def counted(self, name: str, index: int) -> Bool[ndarray, " prediction"]:
        """Which predictions of a sequence count for a model: those of the response, and of the prompt where it is the first."""
        response = self.stream.sequences[index].is_response[1:]
        return response if index not in self.first_of_prompt[name] else np.ones_like(response)

    @cached_property
    def buckets(self) -> dict[int, Int[ndarray, " prediction"]]:
        """By sequence, the index in `BUCKETS` of the token that each position but the last predicts."""
        return {index: buckets_of(self.stream.sequences[index])[1:] for index in self.chosen}

    def missing(self) -> Iterator[str]:
        """A sentence for each source that some model lacks."""
        written = {origin.model for origin in self.origins.values()}
        silent = [name for name in self.models if name not in written]
        if silent:
            yield (
                f"The stream has no responses of {short_list(silent)}, so the rows of source own are missing there; add "
                f'"{silent[0]}@1.0" and so on to cache.responses and cache again.'
            )
        if self.base not in written:
            yield f'The stream has no responses of {self.base}, so the rows of source base are missing; add "{self.base}@1.0".'
        answered = any(o.model == "" and any(self.stream.sequences[i].is_response) for i, o in self.origins.items())
        if not answered:
            yield "The prompts file gives no responses, so the rows of source gold are missing."


def buckets_of(sequence: TokenSequence) -> Int[ndarray, " pos"]:
    """Index in `BUCKETS` of every token of a sequence; each response of a packed sequence is divided by itself."""
    found = np.zeros(len(sequence.ids), dtype=np.int64)
    ranges = [(d.start + d.n_prompt, d.n_response) for d in sequence.documents]
    for start, n in ranges or [(len(sequence.prompt_ids), len(sequence.response_ids))]:
        tenth = -(-n // 10)
        part = np.full(n, BUCKETS.index("middle"))
        part[:tenth] = BUCKETS.index("first")
        part[n - tenth :] = BUCKETS.index("answer")
        found[start : start + n] = part
    return found


def token_classes(tokenizer: "PreTrainedTokenizerBase", n_ids: int, config: DriftConfig) -> Int[ndarray, " id"]:
    """Index in `CLASSES` of every id below ``n_ids``."""
    special, words = set(special_token_ids(tokenizer)), {word.casefold() for word in config.procedural}
    operators = set(config.operators)
    found = (token_class(tokenizer, index, special, words, operators) for index in range(n_ids))
    return np.array([CLASSES.index(name) for name in found], dtype=np.int64)


def token_class(tokenizer: Any, index: int, special: set[int], words: set[str], operators: set[str]) -> str:
    """Name in `CLASSES` of one id; ``words`` are in lower case."""
    if index in special:
        return "special"
    text = token_text(tokenizer, index).strip() if index < len(tokenizer) else ""
    if text.isdigit():
        return "digits"
    if text and set(text) <= operators:
        return "operators"
    return "procedural" if text.casefold() in words else "other"


def labels_of(sequence: TokenSequence) -> tuple[str, str]:
    """Skill and domain of the family that made a prompt, from its id; the task and no domain where no family did."""
    prompt = Sample(sequence.prompt_id, sequence.task or "", "", "")
    found = labels([prompt]).get(sequence.prompt_id)
    return (found.skill, found.domain) if found else (sequence.task or "", "")
