"""Log-likelihoods of continuations, read as generation goes: the prompt in one call, then token by token behind its KV cache.

So an edit in force tells prompt from response as it does in generation, and the last position of the first call is the
last token of the prompt.
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
    """Token ids of a prompt and of what follows it.

    Both are tokenized as one text and cut behind the prompt's tokens; where the prompt's tokens are not the beginning of
    that (a token reaches over the border, or the tokenizer ends every text with one), the continuation is tokenized alone.

    Raises:
        InputError: The continuation has no tokens.
    """
    context = tuple(tokenizer(prompt).input_ids)
    whole = tuple(tokenizer(prompt + continuation).input_ids)
    rest = whole[len(context) :] if whole[: len(context)] == context else ()
    rest = rest or tuple(tokenizer(continuation, add_special_tokens=False).input_ids)
    if not rest:
        raise InputError(f"The option {continuation!r} has no tokens; give it some text.")
    return context, rest


@torch.no_grad()
def log_likelihoods(model: LanguageModel, pairs: Sequence[tuple[Ids, Ids]], *, batch_size: int = 512) -> list[float]:
    """Log p(continuation | prompt) in nats of every ``(prompt ids, continuation ids)``, in the given order.

    Pairs that differ in the last token alone are read once. Prompts are padded on the left; continuations of one batch
    have one length, so that there is no other padding.

    Args:
        model: Hooks on its plain transformers model (`mechprobe.interventions.edited`) take effect.
        pairs: Neither part may be empty.
        batch_size: Most prompts, and most positions whose logits are held, at a time.

    Raises:
        ModelError: Continuations have several tokens and the model gives no KV cache.
    """
    rows: dict[tuple[Ids, Ids], list[int]] = {}
    for index, (prompt, continuation) in enumerate(pairs):
        rows.setdefault((prompt, continuation[:-1]), []).append(index)
    by_length: dict[int, list[tuple[Ids, Ids]]] = {}
    for row in rows:
        by_length.setdefault(len(row[1]) + 1, []).append(row)
    result = [0.0] * len(pairs)
    for length in sorted(by_length):
        mine = by_length[length]
        for batch in length_batches([len(prompt) for prompt, _ in mine], max(1, batch_size // length)):
            chosen = [mine[place] for place in batch]
            for row, table in zip(chosen, _read(model, chosen), strict=True):
                before = sum(float(table[step, token]) for step, token in enumerate(row[1]))
                for index in rows[row]:
                    result[index] = before + float(table[-1, pairs[index][1][-1]])
    return result


def _read(model: LanguageModel, rows: Sequence[tuple[Ids, Ids]]) -> Float[Tensor, "batch step vocab"]:
    """Log-probabilities of the next token at the prompt's end and behind every token of the rest."""
    hf: Any = model.hf
    device = input_device(hf)
    ids, mask = left_pad([prompt for prompt, _ in rows], int(str(model.tokenizer.pad_token_id)), device)
    # Logits of the whole prompt would be the largest tensor by far.
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(hf.forward).parameters else {}
    call = hf(input_ids=ids, **forward_inputs(hf, mask, use_cache=True), **last)
    logits = [call.logits[:, -1:]]
    rest = torch.tensor([row[1] for row in rows], dtype=torch.int64, device=device).reshape(len(rows), -1)
    for step in range(rest.shape[1]):
        if call.past_key_values is None:
            raise ModelError(f"Model {model.name} gives no KV cache, which options of several tokens need.")
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        inputs = forward_inputs(hf, mask, use_cache=True)
        positions = inputs.get("position_ids")
        if isinstance(positions, Tensor):
            inputs["position_ids"] = positions[:, -1:]
        token = rest[:, step : step + 1]
        call = hf(input_ids=token, **inputs, past_key_values=call.past_key_values)
        logits.append(call.logits[:, -1:])
    return torch.cat(logits, dim=1).float().log_softmax(dim=-1)
