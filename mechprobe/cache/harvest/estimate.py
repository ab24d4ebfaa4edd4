"""How long a cache will take: a short probe of the models, extrapolated by tokens."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mechprobe.cache.harvest.forward_batches import forward_batches, padded
from mechprobe.cache.harvest.preparation import Reading
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_plain

PROBE_SECONDS = 8.0
"""Of forward passes and generation, all models together; loading the weights comes on top."""
_FIRST_TOKENS = 16
_PROBE_PROMPTS, _PROBE_NEW_TOKENS = 16, 8


@dataclass(frozen=True)
class Rates:
    """What the probe of one model measured.

    Attributes:
        load_s: Seconds to load the weights.
        token_s: Seconds per padded token of a forward pass that stops at the deepest site.
        generated_s: Seconds per generated token; 0 where the model writes no response.
    """

    load_s: float
    token_s: float
    generated_s: float = 0.0


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds that caching will take in one process. It is an estimate: writing to disk is not in it.

    Attributes:
        seconds: If every response ended at once; exact prompts otherwise.
        most_seconds: If every response were as long as it may be.
        probe_seconds: What the probe took.
        rates: Model name to what was measured; models of one architecture are measured once.
    """

    seconds: float
    most_seconds: float
    probe_seconds: float
    rates: dict[str, Rates]

    def __str__(self) -> str:
        low, high = duration(self.seconds), duration(self.most_seconds)
        span = low if low == high else f"{low} to {high}"
        return f"{span} in one process, without the time of the disk (an estimate from a probe of {self.probe_seconds:.1f} s)"


def duration(seconds: float) -> str:
    """Seconds in words: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def estimate_time(family: ModelFamily, reading: Reading, *, probe_seconds: float = PROBE_SECONDS) -> TimeEstimate:
    """Load each architecture of the family, run a few batches of the prompts, and extrapolate by padded tokens.

    Nothing is written. A response's length is not known before it is written, so there is a least and a most.

    Raises:
        ModelError: A model cannot be loaded.
    """
    started, config = time.monotonic(), reading.config
    least, most = _lengths(family, reading, n_new=0), _lengths(family, reading, n_new=config.max_new_tokens)
    responders = {model for _, model, _ in config.responders()} if reading.unanswered else set()
    measured: dict[tuple[object, ...], Rates] = {}
    rates: dict[str, Rates] = {}
    n_probes = len({_architecture(model, model.name in responders) for model in family})
    for model in family:
        key = _architecture(model, model.name in responders)
        if key not in measured:
            measured[key] = _probe(
                model, family, reading, most, seconds=probe_seconds / n_probes, responds=model.name in responders
            )
            model.release()
        rates[model.name] = measured[key]
    n_least, n_most = (
        sum(lengths[batch[-1]] * len(batch) for batch in forward_batches(lengths, config.batch_tokens))
        for lengths in (least, most)
    )
    loads = sum(rate.load_s for rate in rates.values()) * (1 if config.reader == "bridge" else 2)
    loads += sum(rates[name].load_s for name in responders)
    written = sum(
        rates[model].generated_s * len(reading.unanswered) * config.max_new_tokens
        for _, model, _ in config.responders()
    )
    per_token = sum(rate.token_s for rate in rates.values())
    return TimeEstimate(
        seconds=loads + per_token * n_least,
        most_seconds=loads + per_token * n_most + written,
        probe_seconds=time.monotonic() - started,
        rates=rates,
    )


def _architecture(model: LanguageModel, responds: bool) -> tuple[object, ...]:
    config = model.config.get_text_config()
    sizes = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
    return (responds, *(getattr(config, name, None) for name in sizes))


def _lengths(family: ModelFamily, reading: Reading, *, n_new: int) -> list[int]:
    """Tokens of every sequence, with responses of ``n_new`` tokens where a model is to write them."""
    unanswered, lengths = set(reading.unanswered), list[int]()
    for index, (prompt, ids) in enumerate(zip(reading.prompts, reading.prompt_ids, strict=True)):
        room = reading.max_length - len(ids)
        if index in unanswered:
            lengths += [len(ids) + min(room, n_new)] * len(reading.config.responses)
        elif prompt.response is not None:
            response = family.tokenizer(prompt.response, add_special_tokens=False).input_ids
            lengths.append(len(ids) + min(room, len(response)))
        else:
            lengths.append(len(ids))
    return lengths


def _probe(
    model: LanguageModel,
    family: ModelFamily,
    reading: Reading,
    lengths: Sequence[int],
    *,
    seconds: float,
    responds: bool,
) -> Rates:
    started = time.monotonic()
    _ = model.hf
    load_s = time.monotonic() - started
    share = seconds / 2 if responds else seconds
    token_s = _probe_forward(model, reading, lengths, share)
    return Rates(load_s, token_s, _probe_generation(model, family, reading) if responds else 0.0)


def _probe_forward(model: LanguageModel, reading: Reading, lengths: Sequence[int], seconds: float) -> float:
    """Seconds per padded token, by the largest batch that fits the time: small ones cost more a token."""
    sites = reading.config.parsed_sites()
    median = sorted(lengths)[len(lengths) // 2]
    vocabulary = reading.prompt_ids[0]
    started, tokens = time.monotonic(), min(_FIRST_TOKENS, reading.config.batch_tokens)
    while True:
        length = min(median, tokens)
        row = [vocabulary[index % len(vocabulary)] for index in range(length)]
        n_rows = max(1, min(tokens // length, len(lengths)))
        ids, mask = (part.to(model.input_device) for part in padded([row] * n_rows, 0))
        residuals_plain(model, ids, mask, sites)  # the first pass of a size also chooses kernels and fills caches
        begun = time.monotonic()
        _settled(residuals_plain(model, ids, mask, sites))
        took = time.monotonic() - begun
        larger = min(tokens * 4, reading.config.batch_tokens)
        left = seconds - (time.monotonic() - started)
        whole = n_rows == len(lengths) and length == median
        if larger == tokens or whole or 2 * took * larger / tokens > left:
            return took / (n_rows * length)
        tokens = larger


def _settled(resid: dict) -> None:
    """Wait until a device has done the work."""
    for values in resid.values():
        values[..., 0].sum().item()


def _probe_generation(model: LanguageModel, family: ModelFamily, reading: Reading) -> float:
    """Seconds per generated token."""
    prompts = [reading.prompts[index].prompt for index in reading.unanswered[:_PROBE_PROMPTS]]
    n_new = min(_PROBE_NEW_TOKENS, reading.config.max_new_tokens)
    begun = time.monotonic()
    generate(model.hf, family.tokenizer, prompts, max_new_tokens=n_new, batch_size=len(prompts))
    return (time.monotonic() - begun) / (len(prompts) * n_new)
