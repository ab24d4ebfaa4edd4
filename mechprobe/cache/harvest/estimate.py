"""Estimate of the time to cache: a short probe of the models, extrapolated by the number of tokens."""

import time
from collections.abc import Sequence

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.forward_batches import N_COMPARED, forward_batches, padded
from mechprobe.cache.harvest.prompts import PreparedPrompts
from mechprobe.cache.result import ModelRates, TimeEstimate
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_plain
from mechprobe.progress import activity

_FIRST_TOKENS = 16
_PROBE_PROMPTS, _PROBE_NEW_TOKENS = 16, 8


def estimate_time(family: ModelFamily, prepared: PreparedPrompts, *, probe_seconds: float = 8.0) -> TimeEstimate:
    """Load each architecture of the family, run a few batches, and extrapolate by the number of padded tokens.

    Nothing is written. Response lengths are unknown in advance, so the estimate has a minimum and a maximum. The forward
    passes and generation of all models take about ``probe_seconds``, in addition to the time to load the weights.

    Raises:
        ModelError: A model cannot be loaded.
    """
    started, config = time.monotonic(), prepared.config
    longest = _lengths(prepared, n_new=config.max_new_tokens)
    responders = {model for _, model, _ in config.responders()} if prepared.unanswered else set()
    rates = _measure(family, prepared, longest, responders, probe_seconds)
    least = _padded_sizes(_lengths(prepared, n_new=0), config.batch_tokens)
    most = _padded_sizes(longest, config.batch_tokens)
    n_least, n_most = (sum(sizes) + _compared_tokens(sizes, config) for sizes in (least, most))
    # With plain hooks the weights are loaded twice, once to compare with the bridge.
    loads = sum(rate.load_s for rate in rates.values()) * (1 if config.reader == "bridge" else 2)
    loads += sum(rates[name].load_s for name in responders)
    n_generated = len(prepared.unanswered) * config.max_new_tokens
    generation = sum(rates[model].generated_s * n_generated for _, model, _ in config.responders())
    per_token = sum(rate.token_s for rate in rates.values())
    return TimeEstimate(
        seconds=loads + per_token * n_least,
        most_seconds=loads + per_token * n_most + generation,
        probe_seconds=time.monotonic() - started,
        rates=rates,
    )


def _padded_sizes(lengths: Sequence[int], batch_tokens: int) -> list[int]:
    """Number of tokens, padding included, of every forward pass over sequences of these lengths."""
    return [lengths[batch[-1]] * len(batch) for batch in forward_batches(lengths, batch_tokens)]


def _compared_tokens(sizes: Sequence[int], config: CacheConfig) -> int:
    """Tokens that a model runs on to compare both readers on batches of the first shard (`choose_reader`)."""
    if config.reader == "bridge":
        return 0
    in_first_shard = max(1, round(len(sizes) * min(1.0, config.shard_rows / sum(sizes))))
    return round(2 * min(N_COMPARED, in_first_shard) * sum(sizes) / len(sizes))


def _measure(
    family: ModelFamily, prepared: PreparedPrompts, lengths: Sequence[int], responders: set[str], seconds: float
) -> dict[str, ModelRates]:
    """Speed of every model; models of one architecture are measured once."""
    keys = {model.name: _architecture(model, model.name in responders) for model in family}
    share = seconds / len(set(keys.values()))
    measured: dict[tuple[object, ...], ModelRates] = {}
    for model in family:
        if keys[model.name] not in measured:
            started, responds = time.monotonic(), model.name in responders
            _ = model.hf
            load_s = time.monotonic() - started
            with activity(f"timing {model.name}"):
                token_s = _probe_forward(model, prepared, lengths, share / 2 if responds else share)
                generated_s = _probe_generation(model, family, prepared) if responds else 0.0
            measured[keys[model.name]] = ModelRates(load_s, token_s, generated_s)
            model.release()
    return {name: measured[key] for name, key in keys.items()}


def _architecture(model: LanguageModel, responds: bool) -> tuple[object, ...]:
    config = model.config.get_text_config()
    sizes = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
    return (responds, *(getattr(config, name, None) for name in sizes))


def _lengths(prepared: PreparedPrompts, *, n_new: int) -> list[int]:
    """Number of tokens in every sequence, if each generated response had ``n_new`` tokens."""
    unanswered, lengths = set(prepared.unanswered), list[int]()
    for index, sequence in enumerate(prepared.sequences):
        n_own = len(sequence.ids)
        if index in unanswered:
            lengths += [n_own + min(prepared.max_length - n_own, n_new)] * len(prepared.config.responses)
        else:
            lengths.append(n_own)
    return lengths


def _probe_forward(model: LanguageModel, prepared: PreparedPrompts, lengths: Sequence[int], seconds: float) -> float:
    """Seconds per padded token, measured with the largest batch that fits the time; small batches cost more per token."""
    sites = prepared.config.parsed_sites()
    median = sorted(lengths)[len(lengths) // 2]
    vocabulary = prepared.prompt_ids[0]
    started, tokens = time.monotonic(), min(_FIRST_TOKENS, prepared.config.batch_tokens)
    while True:
        length = min(median, tokens)
        row = [vocabulary[index % len(vocabulary)] for index in range(length)]
        n_rows = max(1, min(tokens // length, len(lengths)))
        ids, mask = (part.to(model.input_device) for part in padded([row] * n_rows, 0))
        residuals_plain(model, ids, mask, sites)  # the first pass of a size also selects kernels and fills caches
        begun = time.monotonic()
        for values in residuals_plain(model, ids, mask, sites).values():
            values[..., 0].sum().item()  # wait until the device has computed them
        took = time.monotonic() - begun
        larger = min(tokens * 4, prepared.config.batch_tokens)
        left = seconds - (time.monotonic() - started)
        complete = n_rows == len(lengths) and length == median
        if larger == tokens or complete or 2 * took * larger / tokens > left:
            return took / (n_rows * length)
        tokens = larger


def _probe_generation(model: LanguageModel, family: ModelFamily, prepared: PreparedPrompts) -> float:
    prompts = [prepared.prompt_ids[index] for index in prepared.unanswered[:_PROBE_PROMPTS]]
    n_new = min(_PROBE_NEW_TOKENS, prepared.config.max_new_tokens)
    begun = time.monotonic()
    generate(model, family.tokenizer, prompts, max_new_tokens=n_new, batch_size=len(prompts))
    return (time.monotonic() - begun) / (len(prompts) * n_new)
