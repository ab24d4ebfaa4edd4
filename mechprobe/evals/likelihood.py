"""Log-likelihoods of continuations, computed in the order of generation.

The prompt is one forward pass, and every token of the continuation is another on the KV cache. An edit therefore
distinguishes prompt from response exactly as in generation: the last position of the first pass is the last prompt token.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mechprobe.errors import InputError, ModelError
from mechprobe.models.devices import input_device
from mechprobe.models.generation import left_pad, length_batches
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import forward_inputs

Ids = tuple[int, ...]


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, continuation: str) -> tuple[Ids, Ids]:
    """Token ids of a prompt and of its continuation.

    The concatenated text is tokenized and split after the tokens of the prompt. If it does not begin with these tokens
    (a token spans the boundary, or the tokenizer appends a token to every text), the continuation is tokenized alone.

    Raises:
        InputError: The continuation has no tokens.
    """
    context = tuple(tokenizer(prompt).input_ids)
    whole = tuple(tokenizer(prompt + continuation).input_ids)
    rest = whole[len(context) :] if whole[: len(context)] == context else ()
    rest = rest or tuple(tokenizer(continuation, add_special_tokens=False).input_ids)
    if not rest:
        raise InputError(f"The option {continuation!r} has no tokens; give it a text that the tokenizer knows.")
    return context, rest


@torch.no_grad()
def log_likelihoods(model: LanguageModel, pairs: Sequence[tuple[Ids, Ids]], *, batch_size: int = 512) -> list[float]:
    """Log p(continuation | prompt) in nats of every ``(prompt ids, continuation ids)``, in the given order.

    Pairs that differ only in the last token share their forward passes. Prompts are padded on the left. Continuations in
    one batch have the same length, so nothing else is padded.

    Args:
        model: Hooks on its transformers model (`mechprobe.interventions.edited`) take effect.
        pairs: Token ids; neither part may be empty.
        batch_size: Maximal number of prompts in one forward batch, and of positions whose logits are kept in memory.

    Raises:
        ModelError: A continuation has several tokens and the model returns no KV cache.
    """
    rows: dict[tuple[Ids, Ids], list[int]] = {}
    for index, (prompt, continuation) in enumerate(pairs):
        rows.setdefault((prompt, continuation[:-1]), []).append(index)
    by_length: dict[int, list[tuple[Ids, Ids]]] = {}
    for row in rows:
        by_length.setdefault(len(row[1]) + 1, []).append(row)
    result = [0.0] * len(pairs)
    for length, same_length in sorted(by_length.items()):
        for batch in length_batches([len(prompt) for prompt, _ in same_length], max(1, batch_size // length)):
            chosen = [same_length[index] for index in batch]
            for row, log_probs in zip(chosen, _next_token_log_probs(model, chosen), strict=True):
                before = sum(float(log_probs[step, token]) for step, token in enumerate(row[1]))
                for index in rows[row]:
                    result[index] = before + float(log_probs[-1, pairs[index][1][-1]])
    return result


def _next_token_log_probs(model: LanguageModel, rows: Sequence[tuple[Ids, Ids]]) -> Float[Tensor, "batch step vocab"]:
    """Log-probabilities of the next token after the prompt and after every further token of each row."""
    hf: Any = model.hf
    device = input_device(hf)
    ids, mask = left_pad([prompt for prompt, _ in rows], int(str(model.tokenizer.pad_token_id)), device)
    # The logits of the whole prompt would be by far the largest tensor.
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(hf.forward).parameters else {}
    call = hf(input_ids=ids, **forward_inputs(hf, mask, use_cache=True), **last)
    logits = [call.logits[:, -1:]]
    rest = torch.tensor([row[1] for row in rows], dtype=torch.int64, device=device).reshape(len(rows), -1)
    for step in range(rest.shape[1]):
        if call.past_key_values is None:
            raise ModelError(
                f"Model {model.name} returns no KV cache, which options of several tokens need; score letters instead "
                '(tasks.choice.show = "letters").'
            )
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        inputs = forward_inputs(hf, mask, use_cache=True)
        positions = inputs.get("position_ids")
        if isinstance(positions, Tensor):
            inputs["position_ids"] = positions[:, -1:]
        token = rest[:, step : step + 1]
        call = hf(input_ids=token, **inputs, past_key_values=call.past_key_values)
        logits.append(call.logits[:, -1:])
    return torch.cat(logits, dim=1).float().log_softmax(dim=-1)
