"""Pre-training of a small Llama from scratch: AdamW, warm-up and cosine decay, loss on the responses only."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.lab.items import Document
from mechprobe.lab.recipe import ModelConfig, TrainingConfig
from mechprobe.lab.tokenizer import BOS_ID, CONTEXT, EOS_ID, PAD_ID

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_IGNORE = -100
_N_BUCKETS = 2


def new_model(config: ModelConfig, tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    """Create an untrained model, whose weights depend on torch's global generator; the caller seeds it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.d_model,
            intermediate_size=config.d_mlp,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            pad_token_id=PAD_ID,
        )
    )


def pretrain(
    model: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    stream: Iterator[Document],
    config: TrainingConfig,
    on_step: Callable[[float], Any] = lambda _loss: None,
) -> list[dict[str, float | int]]:
    """Train a model in place; each step consumes ``config.batch_size`` documents, and calls ``on_step`` with its loss.

    Returns:
        The curve: step, learning rate and loss every 10 steps and at the end.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)
    curve: list[dict[str, float | int]] = []
    model.train()
    for step in range(config.steps):
        lr = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = list(itertools.islice(stream, config.batch_size))
        loss = _accumulate_gradient(model, tokenizer, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or step == config.steps - 1:
            curve.append({"step": step, "lr": lr, "loss": loss})
        on_step(loss)
    model.eval()
    return curve


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate: a linear rise over ``warmup_steps``, then a half cosine to ``final_lr_share`` of the peak."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * share)


def _accumulate_gradient(
    model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", batch: list[Document]
) -> float:
    """Accumulate the gradient of the mean loss over all response tokens of the batch, and return that loss.

    Documents run in buckets of similar length, which saves padding and does not change the loss.
    """
    prompts = tokenizer([d.prompt for d in batch], padding=False).input_ids
    responses = tokenizer([d.response for d in batch], add_special_tokens=False, padding=False).input_ids
    rows = [(p, [*r, EOS_ID]) for p, r in zip(prompts, responses, strict=True)]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    n_targets = sum(len(response) for _, response in rows)
    size = math.ceil(len(rows) / _N_BUCKETS)
    total = 0.0
    for start in range(0, len(rows), size):
        ids, labels = _pad(rows[start : start + size])
        loss = response_loss(model, ids, labels) / n_targets
        loss.backward()
        total += loss.item()
    return total


def _pad(rows: list[tuple[list[int], list[int]]]) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Pad rows on the right; the label of a position is the next response token, or -100 if there is none."""
    length = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.full((len(rows), length), PAD_ID)
    labels = torch.full((len(rows), length), _IGNORE)
    for i, (prompt, response) in enumerate(rows):
        n = len(prompt) + len(response)
        ids[i, :n] = torch.tensor(prompt + response)
        labels[i, len(prompt) - 1 : n - 1] = torch.tensor(response)
    return ids, labels


def response_loss(
    model: "LlamaForCausalLM", ids: Int[Tensor, "batch pos"], labels: Int[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Sum of the cross entropy in nats over the positions with a label; only these are unembedded."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    kept = labels != _IGNORE
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[kept]), labels[kept], reduction="sum")
