"""A file of traces: prompts with responses, and optionally the log-probabilities of a teacher or of the sampler."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.fields import Record, to_prompt
from mechprobe.data.prompts import Prompt
from mechprobe.data.readers import read_records
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.traces import GOLD, Trace, with_end
from mechprobe.errors import InputError, ModelError
from mechprobe.evals.rollouts.answers import FINISHES
from mechprobe.evals.rollouts.fields import IDS_FIELDS, first_of, token_ids
from mechprobe.formatting import short_repr
from mechprobe.json_fields import json_kind, name_field
from mechprobe.models.family import ModelFamily
from mechprobe.models.tokenizers import NamedTokenizer, compare, load_tokenizer

SAMPLER_FIELD = "sampler_logprobs"
_FIELDS = (*IDS_FIELDS, "answer", "model", "finish_reason", "temperature", "teacher_ids", SAMPLER_FIELD)
_LEAST, _MOST = -1e6, 1e-3
"""Smallest log-probability that a model gives, and the largest one that rounding explains."""
_TEMPERATURES = 1e-3, 1e3
"""Lowest and highest temperature of a sampler; beyond them all probability is on one token, or tokens are alike."""
OTHER_WAY = "set logprobs.compare = 'bytes' to compare bits per byte of whole responses"


def read_traces(family: ModelFamily, config: LogprobsConfig) -> list[Trace]:
    """Read the traces of ``config.traces``.

    Raises:
        InputError: The file or a line cannot be used, or the teacher's values are those of other tokens; the message names the line.
        ModelError: The teacher has another tokenizer.
    """
    if config.teacher_tokenizer and config.compare == "tokens":
        require_same_tokenizer(config.teacher_tokenizer, family)
    encoder, found, prompts = PromptEncoder.of(family.tokenizers, config.text), list[Trace](), dict[str, str]()
    for record in read_records(config.traces, (*_FIELDS, config.teacher_field)):
        trace = _trace(record, encoder, family, config)
        if prompts.setdefault(trace.id, trace.prompt_id) != trace.prompt_id:
            raise InputError(
                f"{record.where}: the id '{trace.id}' stands on a line with another prompt; give each its own."
            )
        found.append(trace)
    if not found:
        raise InputError(
            f"{config.traces.file} contains no traces; write one JSON object with prompt and response a line."
        )
    with_teacher = [trace for trace in found if trace.teacher]
    if not with_teacher and config.teacher_field != LogprobsConfig().teacher_field:
        raise InputError(f"{config.traces.file} has no field '{config.teacher_field}'; correct logprobs.teacher_field.")
    if config.teacher and with_teacher:
        raise InputError(
            f"{config.traces.file} has the field '{config.teacher_field}' and logprobs.teacher is '{config.teacher}'; keep one teacher."
        )
    return found


def require_same_tokenizer(folder: str, family: ModelFamily) -> None:
    """Raise `ModelError` with the reason where the teacher's tokenizer gives other tokens than that of the models."""
    if not Path(folder).is_dir():
        raise ModelError(
            f"logprobs.teacher_tokenizer is '{folder}', which is no folder; give that of the teacher's tokenizer."
        )
    teacher = NamedTokenizer("teacher", load_tokenizer(Path(folder), role="teacher"))
    own = NamedTokenizer("models", family.tokenizer)
    try:
        compare(own, teacher, bos_decided=True)
    except ModelError as error:
        reason = str(error).partition(": ")[2].rpartition(";")[0]
        raise ModelError(
            f"The teacher's tokenizer in {folder} is not that of the models ({reason}), so its log-probabilities are of other tokens; "
            f"{OTHER_WAY}."
        ) from None


def _trace(record: Record, encoder: PromptEncoder, family: ModelFamily, config: LogprobsConfig) -> Trace:
    prompt, fields, where = to_prompt(record, config.traces), record.fields, record.where
    ids, n_bytes = _response(prompt, fields, encoder, family)
    reason = fields.get("finish_reason")
    if reason is not None and FINISHES.get(str(reason)) is None:
        raise InputError(
            f"{where}: the finish_reason {str(reason)[:40]!r} is none of {', '.join(FINISHES)}; correct it."
        )
    ids, n_text = with_end(ids, family, config, ended=reason is None or FINISHES[reason] == "stop")
    source = name_field({**fields}, "model", where, default=GOLD) if fields.get("model") else GOLD
    return Trace(
        id=prompt.id,
        prompt_id=prompt.content_key,
        task=prompt.task or "",
        source=source,
        prompt_ids=encoder.encode(prompt),
        response_ids=ids,
        n_text=n_text,
        n_bytes=n_bytes,
        answer=_answer(fields.get("answer"), where),
        teacher=_teacher(fields, ids, n_text, config, where),
        sampled=_aligned(_values(fields.get(SAMPLER_FIELD), SAMPLER_FIELD, where), len(ids), n_text, where, "sampler"),
        temperature=_temperature(fields.get("temperature"), where),
    )


def _response(
    prompt: Prompt, fields: Mapping[str, Any], encoder: PromptEncoder, family: ModelFamily
) -> tuple[tuple[int, ...], int]:
    """Token ids of a response and its length in bytes."""
    given = first_of(fields, IDS_FIELDS)
    ids = (
        encoder.encode_response(prompt)
        if given is None
        else token_ids(given, "response_ids", family.tokenizer, prompt.where)
    )
    if not ids:
        raise InputError(f"{prompt} has no response; give every trace a response that is not empty.")
    decoded = str(family.tokenizer.decode(list(ids), skip_special_tokens=True))
    text = decoded if prompt.response is None else prompt.response
    if given is not None and "".join(decoded.split()) != "".join(text.split()):
        raise InputError(
            f"{prompt.where}: the response ids decode to {decoded[:60]!r}, but the response is {text[:60]!r}; give the ids of the tokenizer "
            "of the models, or leave them out."
        )
    return ids, len(text.encode())


def _values(value: Any, name: str, where: str) -> tuple[float, ...]:
    """A list of log-probabilities; empty where there is none."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InputError(f"{where}: '{name}' is no list of numbers; give one log-probability for each response token.")
    numbers = tuple(map(_number, value))
    for place, number in enumerate(numbers):
        holds = f"{where}: '{name}' holds {short_repr(value[place], most=40)} at token {place}"
        if not math.isfinite(number):
            raise InputError(f"{holds}; every value must be a finite number.")
        if number > _MOST:
            raise InputError(f"{holds}; a log-probability is never above 0.")
        if number < _LEAST:
            raise InputError(f"{holds}, which no model gives; correct it.")
    return numbers


def _number(value: Any) -> float:
    """A JSON number; NaN for other values, and infinity for a number beyond the range of a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _answer(value: Any, where: str) -> str:
    """The right answer; empty where there is none."""
    if value is None or isinstance(value, str):
        return value or ""
    if not math.isfinite(_number(value)):
        raise InputError(
            f"{where}: 'answer' is {json_kind(value)} ({short_repr(value, most=40)}); it must be a text or a finite number."
        )
    return str(value)


def _teacher(
    fields: Mapping[str, Any], ids: tuple[int, ...], n_text: int, config: LogprobsConfig, where: str
) -> tuple[float, ...]:
    values = _values(fields.get(config.teacher_field), config.teacher_field, where)
    if not values or config.compare == "bytes":
        return values
    other = fields.get("teacher_ids")
    if other is None:
        return _aligned(values, len(ids), n_text, where, "teacher")
    if not isinstance(other, list | tuple) or not all(type(token) is int for token in other):
        raise InputError(f"{where}: 'teacher_ids' is not a list of token ids; write whole numbers.")
    if list(other[:n_text]) != list(ids[:n_text]):
        place = next((i for i, (a, b) in enumerate(zip(other, ids, strict=False)) if a != b), min(len(other), len(ids)))
        raise InputError(
            f"{where}: the teacher's tokens differ from those of the models from token {place} on, so its log-probabilities are of "
            f"other tokens; {OTHER_WAY}, or give the teacher's ids as response_ids if it has the tokenizer of the models."
        )
    return _aligned(values, len(ids), n_text, where, "teacher")


def _aligned(values: tuple[float, ...], n: int, n_text: int, where: str, who: str) -> tuple[float, ...]:
    """One value to each token; NaN for an end token without one, and no value of an end token that does not count."""
    if len(values) in (0, n):
        return values
    if len(values) == n_text:
        return (*values, math.nan)
    if n == n_text and len(values) == n_text + 1:
        return values[:-1]
    mend = OTHER_WAY if who == "teacher" else "leave them out"
    raise InputError(
        f"{where}: the {who} gives {len(values)} log-probabilities, but the response has {n_text} tokens without its end token in the "
        f"tokenizer of the models, so they are of other tokens; give the token ids as response_ids, or {mend}."
    )


def _temperature(value: Any, where: str) -> float:
    if value is None:
        return 1.0
    low, high = _TEMPERATURES
    if not low <= _number(value) <= high:
        raise InputError(
            f"{where}: the temperature {short_repr(value, most=40)} is no number above 0 from {low:g} to {high:g}, so the sampler has no "
            "distribution; correct it."
        )
    return float(value)
