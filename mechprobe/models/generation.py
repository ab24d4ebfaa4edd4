"""Batched generation with a plain transformers model: left padding, KV cache, greedy or seeded sampling."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from mechprobe.errors import InputError
from mechprobe.models.devices import input_device
from mechprobe.types import Finish


@dataclass(frozen=True, slots=True)
class Generated:
    """One response, without the token that ended it."""

    text: str
    token_ids: tuple[int, ...]
    finish: Finish = "stop"


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Sequence[int]], *, max_length: int, prefix: str = ""
) -> list[list[int]]:
    """Tokenize texts with special tokens (token ids stay as they are), and append ``prefix``, which begins the response.

    Raises:
        InputError: A prompt is empty, or longer than ``max_length`` tokens.
    """
    extra = tokenizer(prefix, add_special_tokens=False).input_ids if prefix else []
    encoded = []
    for index, prompt in enumerate(prompts):
        ids = [*(tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt), *extra]
        if not ids:
            raise InputError(f"Prompt {index} ({prompt[:40]!r}) has no tokens; remove it.")
        if len(ids) > max_length:
            raise InputError(
                f"Prompt {index} ({prompt[:40]!r}) has {len(ids)} tokens, but the context has room for {max_length}; "
                "shorten it, or lower max_new_tokens."
            )
        encoded.append(ids)
    return encoded


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a response, from the config of the model and from the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None})


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches of similar length; the batches depend on the lengths only."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def left_pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of token ids on the left; return ``(ids, attention_mask)``, both ``[batch pos]`` int64."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[index, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    prefix: str = "",
) -> list[Generated]:
    """Generate one response for every prompt, in the given order.

    Args:
        model: Plain transformers model; hooks on it (`mechprobe.interventions.edited`) take effect.
        tokenizer: Tokenizer of the model, with a pad token.
        prompts: Texts, to which the tokenizer adds its special tokens, or token ids, which are used as they are.
        max_new_tokens: Longest response, in tokens.
        batch_size: Number of prompts in a batch; prompts of similar length are batched together.
        temperature: Sampling temperature; 0 means greedy decoding.
        seed: Seed of the sampling. The global random state is restored afterwards.
        prefix: Forced beginning of every response; it is part of the returned text.

    Raises:
        InputError: A prompt is empty or does not leave ``max_new_tokens`` in the context.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    encoded = encode_prompts(tokenizer, prompts, max_length=context - max_new_tokens, prefix=prefix)
    ends, device = end_token_ids(model, tokenizer), input_device(model)
    pad_id = int(str(tokenizer.pad_token_id))
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad_id,
        use_cache=True,
        **({"do_sample": False} | sampling),
    )
    n_prefix = len(tokenizer(prefix, add_special_tokens=False).input_ids) if prefix else 0
    results: list[Generated | None] = [None] * len(prompts)
    for number, batch in enumerate(length_batches([len(row) for row in encoded], batch_size)):
        ids, mask = left_pad([encoded[index] for index in batch], pad_id, device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed * 1_000_003 + number)
            output = _generate(model, input_ids=ids, attention_mask=mask, generation_config=config)
        responses = output[:, ids.shape[1] - n_prefix :].tolist()
        for index, tokens in zip(batch, responses, strict=True):
            kept = list(takewhile(lambda token: token not in ends, tokens))
            finish: Finish = "stop" if len(kept) < len(tokens) else "length"
            results[index] = Generated(str(tokenizer.decode(kept, skip_special_tokens=True)), tuple(kept), finish)
    return [result for result in results if result is not None]


def _generate(model: Any, **inputs: Any) -> torch.Tensor:
    """Generate with the given settings alone, because those in a model's folder may differ between models."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        return model.generate(**inputs)
    finally:
        model.generation_config = own
