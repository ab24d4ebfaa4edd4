"""Fixed traces that every checkpoint reads: prompts with responses, from the outcomes of a run or from a file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mechprobe.data.encoding import PromptEncoder
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.answering import prompt_of
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.models.family import ModelFamily
from mechprobe.models.tokenizers import require_ids
from mechprobe.records import Outcomes

GOLD = "gold"
"""Source of the responses that a file gives."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A prompt and a response whose tokens are scored.

    Attributes:
        id: Name of the trace.
        prompt_id: Name of its prompt; traces of one prompt are resampled together.
        task: Name of the task; empty if there is none.
        source: The model that wrote the response, or ``gold``.
        prompt_ids: Token ids of the prompt.
        response_ids: Token ids of the response, with its end token where that counts.
        n_text: Number of response tokens that are text; at most one end token follows.
        n_bytes: Length of the response in bytes of UTF-8.
        answer: The right answer; empty if it is unknown.
        teacher: The teacher's log-probabilities in nats, NaN where there is none; empty without a teacher.
        sampled: Log-probabilities that the sampler gave, in the same form, at ``temperature``.
    """

    id: str
    prompt_id: str
    task: str
    source: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    n_text: int
    n_bytes: int
    answer: str = ""
    teacher: tuple[float, ...] = ()
    sampled: tuple[float, ...] = ()
    temperature: float = 1.0

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids."""
        return self.prompt_ids + self.response_ids


@dataclass(frozen=True)
class TraceSet:
    """The traces of a stage.

    Attributes:
        traces: The traces.
        notes: What a reader should know about them.
    """

    traces: tuple[Trace, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def hash(self) -> str:
        """sha256 over all fields of all traces."""
        rows = [[getattr(trace, name) for name in Trace.__slots__] for trace in self.traces]
        return sha256_bytes(dump_json(rows).encode())

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources in order of appearance."""
        return tuple(dict.fromkeys(trace.source for trace in self.traces))

    @classmethod
    def of(cls, traces: Iterable[Trace], family: ModelFamily, config: LogprobsConfig) -> "TraceSet":
        """Draw prompts, and check that every model can read the traces.

        Raises:
            InputError: There are none, or one is too long, has no token, or has one without an embedding.
        """
        kept, dropped, unknown = [], 0, _unknown(family)
        for trace in _drawn(list(traces), config):
            require_ids(trace.ids, family.n_token_ids, family.tokenizer, f"Trace {trace.id!r}")
            if len(trace.ids) <= family.max_context:
                kept.append(trace)
            elif config.too_long == "refuse":
                raise InputError(
                    f"Trace {trace.id!r} has {len(trace.ids)} tokens, but the context of the models holds {family.max_context}; "
                    "shorten it, or set logprobs.too_long = 'drop'."
                )
            else:
                dropped += 1
        if not kept:
            raise InputError("There is no trace with a response token to score; give traces with responses.")
        lost = sum(unknown in trace.ids for trace in kept)
        notes = [f"{dropped} traces are longer than the context and were dropped."] if dropped else []
        notes += (
            [
                f"{lost} of {len(kept)} traces have characters that the tokenizer lacks; the unknown token stands for them."
            ]
            if lost
            else []
        )
        return cls(tuple(kept), tuple(notes))


def _drawn(traces: Sequence[Trace], config: LogprobsConfig) -> list[Trace]:
    """The traces of at most ``config.max_prompts`` prompts, in order."""
    prompts = list(dict.fromkeys(trace.prompt_id for trace in traces))
    if config.max_prompts is not None and len(prompts) > config.max_prompts:
        order = np.random.default_rng([config.seed, 0]).permutation(len(prompts))[: config.max_prompts]
        prompts = [prompts[index] for index in order]
    chosen = set(prompts)
    return [trace for trace in traces if trace.prompt_id in chosen]


def _unknown(family: ModelFamily) -> int | None:
    """The token of characters that the tokenizer lacks; None where it is also an end token or there is none."""
    token = family.tokenizer.unk_token_id
    ends = (*family.end_token_ids, family.tokenizer.eos_token_id)
    return token if isinstance(token, int) and token not in ends else None


def end_token(family: ModelFamily) -> int | None:
    """The end token of a response: that of the tokenizer where the models end with it, else their first one."""
    own = family.tokenizer.eos_token_id
    ends = family.end_token_ids
    return own if own in ends else (ends[0] if ends else None)


def with_end(
    ids: Sequence[int], family: ModelFamily, config: LogprobsConfig, *, ended: bool
) -> tuple[tuple[int, ...], int]:
    """Response ids with at most one end token, and the number of those before it."""
    text = list(ids)
    spelled = [token for token in ids if token in family.end_token_ids][:1]
    while text and text[-1] in family.end_token_ids:
        text.pop()
    end = spelled[0] if spelled and len(text) < len(ids) else end_token(family)
    counted = config.end_token and end is not None and (ended or len(text) < len(ids))
    return (*text, *([end] if counted and end is not None else [])), len(text)


def traces_of_outcomes(
    outcomes: Outcomes, writers: Sequence[str], family: ModelFamily, config: LogprobsConfig
) -> list[Trace]:
    """The evaluated responses of some models as traces. Responses without tokens, and cut ones, have no end token.

    Raises:
        ConfigError: A writer was not evaluated.
        InputError: The samples of the outcomes are unknown, or no response has token ids.
    """
    missing = [name for name in writers if name not in outcomes.models]
    if missing:
        raise ConfigError(
            f"logprobs.writers names '{missing[0]}', but the evaluated models are {', '.join(outcomes.models)}; name one of them."
        )
    encoder, found = PromptEncoder.of(family.tokenizers, config.text), []
    for record in outcomes.records:
        if record.model not in writers or not record.finish:
            continue
        sample = outcomes.samples.get(record.sample_id)
        if sample is None:
            raise InputError(
                f"The prompt of sample {record.sample_id} is unknown; give outcomes with their samples, or a file of traces."
            )
        ids, n_text = with_end(record.response_ids, family, config, ended=record.finish == "stop")
        if not ids:
            continue
        found.append(
            Trace(
                id=f"{record.sample_id}#{record.model}#{record.draw}",
                prompt_id=record.sample_id,
                task=record.task,
                source=record.model,
                prompt_ids=encoder.encode(prompt_of(sample)),
                response_ids=ids,
                n_text=n_text,
                n_bytes=len(record.response.encode()),
                answer=sample.answer,
            )
        )
    if not found:
        raise InputError(
            f"The evaluated responses of {', '.join(writers)} have no tokens; evaluate tasks that are answered in words."
        )
    return found
