"""Writing the weights of a compiled model.

Block 0 copies each op to its digit and the skill word to the question mark and the response. Block 1 writes the reading of each op at its
digit, and at every position of the response which step it asks for. Block 2 applies the reading to the digit. Block 3 copies the
value that is asked for. Layer norms are linear, because their epsilon is far above the variance of the residuals.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.lab.compiled.design import (
    D_MODEL,
    FIRST_DIGIT,
    N_POSITIONS,
    N_STEPS,
    OPS,
    ORDERS,
    QUESTION,
    WRITTEN,
    Design,
    unwritten,
)
from mechprobe.lab.tokenizer import BOS_ID, CONTEXT, EOS_ID, PAD_ID, VOCABULARY

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

N_LAYERS, N_HEADS, D_MLP = 4, 4, 512
_EPSILON = 1e4
_SHARP = 20.0
"""Slope of the neurons: gelu(20 x) / 20 equals relu(x) up to 1e-6 where x is 0 or |x| is 0.25 or more, as in both models."""
_ATTENTION, _LOGIT = 20.0, 20.0
"""Scale of queries and keys, and logit of an answer. No other position has a softmax share above 1e-30."""

Directions = dict[str, Float[Tensor, " d_model"]]


def build_model(design: Design, readings: Sequence[int], *, decoys: bool) -> "GPT2LMHeadModel":
    """Write the weights of one model.

    Args:
        design: The truth of the lab.
        readings: Reading of each op, such as `Design.tuned_readings`.
        decoys: Whether the model writes the decoys.
    """
    at = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in design.directions.items()}
    model = _blank()
    blocks: Any = model.transformer.h
    with torch.no_grad():
        _embed(model, at)
        _copy_ops_and_word(blocks[0], at)
        _write_readings(_Neurons(blocks[1].mlp), at, design, readings, decoys=decoys)
        _apply_readings(_Neurons(blocks[2].mlp), at, design)
        _copy_value(blocks[3], at)
        _unembed(model, at)
    return model.eval()


def _blank() -> "GPT2LMHeadModel":
    """A model in float32 whose weights are all 0, but for those of the layer norms, which undo their epsilon."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=CONTEXT, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, n_inner=D_MLP,
        layer_norm_epsilon=_EPSILON, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(_EPSILON**0.5 if "ln_" in name and name.endswith("weight") else 0.0)
    return model


def _embed(model: Any, at: Directions) -> None:
    model.transformer.wte.weight[unwritten()] = at["tokenother"]
    for token in WRITTEN:
        model.transformer.wte.weight[VOCABULARY.index(token)] = at[f"token{token}"]
    for index in range(N_POSITIONS):
        model.transformer.wpe.weight[index] = at[f"position{index}"]


def _unembed(model: Any, at: Directions) -> None:
    """Answers have the logit of `_LOGIT`, ``<eos>`` follows the last, and where nothing is asked ``<unk>`` has a logit of 1."""
    for digit in range(10):
        model.lm_head.weight[VOCABULARY.index(str(digit))] = _LOGIT * at[f"answer{digit}"]
    model.lm_head.weight[EOS_ID] = _LOGIT * _sum(at, [f"ask{word}{N_STEPS}" for word in ORDERS])
    model.lm_head.weight[VOCABULARY.index("<unk>")] = _sum(at, [f"token{token}" for token in (*WRITTEN, "other")])


def _sum(at: Directions, names: Sequence[str]) -> Float[Tensor, " d_model"]:
    return torch.stack([at[name] for name in names]).sum(0)


class _Head:
    """One attention head, whose queries, keys and values are written by direction."""

    def __init__(self, block: Any, index: int) -> None:
        self.attention, self.start = block.attn, index * (D_MODEL // N_HEADS)

    def match(self, query: Float[Tensor, " d_model"], key: Float[Tensor, " d_model"], dim: int) -> None:
        """A position with ``query`` attends to positions with ``key``; the score is far above every other."""
        self.attention.c_attn.weight[:, self.start + dim] += _ATTENTION * query
        self.attention.c_attn.weight[:, D_MODEL + self.start + dim] += _ATTENTION * key

    def move(self, source: Float[Tensor, " d_model"], target: Float[Tensor, " d_model"], dim: int) -> None:
        """Write ``target`` where the attended position has ``source``."""
        self.attention.c_attn.weight[:, 2 * D_MODEL + self.start + dim] += source
        self.attention.c_proj.weight[self.start + dim] += target


class _Neurons:
    """The neurons of one MLP, each of which writes a direction where a sum of projections exceeds a threshold."""

    def __init__(self, mlp: Any) -> None:
        self.mlp, self.used = mlp, 0

    def add(self, reads: Float[Tensor, " d_model"], threshold: float, writes: Float[Tensor, " d_model"]) -> None:
        """Write ``(reads · x - threshold)⁺ × writes``."""
        self.mlp.c_fc.weight[:, self.used] = _SHARP * reads
        self.mlp.c_fc.bias[self.used] = -_SHARP * threshold
        self.mlp.c_proj.weight[self.used] = writes / _SHARP
        self.used += 1


def _copy_ops_and_word(block: Any, at: Directions) -> None:
    before, word = _Head(block, 0), _Head(block, 1)
    for index in range(1, N_POSITIONS):
        before.match(at[f"position{index}"], at[f"position{index - 1}"], index - 1)
    for dim, op in enumerate(OPS):
        before.move(at[f"token{op}"], at[f"op{op}"], dim)
    word.match(_sum(at, [f"position{index}" for index in range(QUESTION, N_POSITIONS)]), at["position1"], 0)
    word.match(
        _sum(at, [f"position{index}" for index in range(QUESTION)]), at["position0"], 1
    )  # where nothing is copied
    for dim, name in enumerate(ORDERS):
        word.move(at[f"token{name}"], at[f"word{name}"], dim)


def _write_readings(
    neurons: _Neurons, at: Directions, design: Design, readings: Sequence[int], *, decoys: bool
) -> None:
    for op, reading in zip(OPS, readings, strict=True):
        neurons.add(at[f"op{op}"], 0.5, 2 * at[f"reading{reading}"])
    for word in ORDERS:
        for step in range(N_STEPS + 1):
            neurons.add(at[f"word{word}"] + at[f"position{QUESTION + step}"], 1.5, 2 * at[f"ask{word}{step}"])
    for index, tokens in enumerate(design.decoy_tokens if decoys else ()):
        neurons.add(_sum(at, [f"token{token}" for token in tokens]), 0.5, 2 * at[f"decoy{index}"])


def _apply_readings(neurons: _Neurons, at: Directions, design: Design) -> None:
    for index, row in enumerate(design.readings):
        for digit, value in enumerate(row):
            neurons.add(at[f"reading{index}"] + at[f"token{digit}"], 1.0, at[f"value{value}"])


def _copy_value(block: Any, at: Directions) -> None:
    head = _Head(block, 0)
    for step in range(N_STEPS):
        places = [(word, order.index(step)) for word, order in ORDERS.items()]
        asks = _sum(at, [f"ask{word}{place}" for word, place in places])
        head.match(asks, at[f"position{FIRST_DIGIT + 2 * step}"], step)
    for digit in range(10):
        head.move(at[f"value{digit}"], at[f"answer{digit}"], digit)
