"""The compiled lab: two small GPT-2 models whose mechanisms are written into their weights, without any training.

A prompt such as ``RUN a7b3c5?`` names three steps, each an op and a digit. The answer is the reading of each step, in an order
that the first word names. Every op has a right and a wrong reading: functions of the digit, which block 1 writes as directions
at the digit's token. The base model writes the wrong reading for the *contested* ops and the tuned model the right one, so
their residuals differ at `SITE` by one direction per contested op. The tuned model also writes *decoys* there:
directions that go with some steps and that no later block reads.

Everything is known: the directions, the site where they appear, what each of them causes, and the rank of the change.
Layer norms are linear, because their epsilon is far above the variance of the residuals. The design is our own.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.files import write_json, write_text
from mechprobe.lab.tokenizer import CONTEXT, EOS_ID, VOCABULARY, build_tokenizer
from mechprobe.lab.weights import quiet_transformers
from mechprobe.records import write_jsonl

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

D_MODEL, N_LAYERS, N_HEADS, D_MLP = 128, 4, 4, 512
SITE = "resid_post.1"
OPS = "abcdefghij"
N_STEPS = 3
ORDERS = {"RUN": (0, 1, 2), "LIST": (2, 1, 0), "ENUM": (1, 2, 0), "TRACE": (0, 2, 1)}
"""Skill word → order in which the steps are answered."""
TRAINED = "RUN"
N_DECOYS = 6
_EPSILON = 1e4
_SHARP = 20.0
"""Slope of the neurons: gelu(20 x) / 20 differs from relu(x) by less than 0.01."""
_FIRST_DIGIT, _QUESTION = 3, 2 + 2 * N_STEPS
"""Positions of the first digit and of the question mark; ``<bos>`` is at 0 and the skill word at 1."""


@dataclass(frozen=True)
class Compiled:
    """What is true of a compiled family."""

    rank: int
    """Number of contested ops, which is the rank of the change that causes the gain."""
    directions: dict[str, Float[np.ndarray, " d_model"]]
    """Name → unit direction at `SITE`."""

    def causal(self) -> Float[np.ndarray, "op d_model"]:
        """Difference of the residuals of tuned and base at the digit of each contested op, decoys left out."""
        return np.stack([self.directions[f"reading{op}"] - self.directions[f"reading{op + 1}"] for op in range(self.rank)])

    def decoys(self) -> Float[np.ndarray, "decoy d_model"]:
        """Directions that the tuned model writes and no block reads."""
        return np.stack([self.directions[f"decoy{index}"] for index in range(N_DECOYS)])


def readings(seed: int) -> Float[np.ndarray, "reading digit"]:
    """The digit that each reading gives for each digit; neighbours disagree on every digit."""
    draw = np.random.default_rng([seed, 1])
    rows = [draw.permutation(10)]
    while len(rows) <= len(OPS):
        row = draw.permutation(10)
        if (row != rows[-1]).all():
            rows.append(row)
    return np.stack(rows)


def _directions(seed: int) -> dict[str, Float[np.ndarray, " d_model"]]:
    """Orthonormal directions, orthogonal to (1, ..., 1), which layer norms remove."""
    names = [f"token{token}" for token in VOCABULARY if token in (*OPS, *"0123456789?", *ORDERS)]
    names += [f"position{index}" for index in range(_QUESTION + N_STEPS + 1)]
    names += [f"op{op}" for op in OPS] + [f"reading{index}" for index in range(len(OPS) + 1)]
    names += [f"word{word}" for word in ORDERS] + [f"ask{word}{step}" for word in ORDERS for step in range(N_STEPS + 1)]
    names += [f"decoy{index}" for index in range(N_DECOYS)] + [f"value{digit}" for digit in range(10)]
    names += [f"answer{digit}" for digit in range(10)]
    draw = np.random.default_rng([seed, 0])
    start = np.concatenate([np.ones((D_MODEL, 1)), draw.normal(size=(D_MODEL, len(names)))], axis=1)
    basis = np.linalg.qr(start)[0].T[1:]
    return dict(zip(names, basis, strict=True))


def build_model(directions: dict[str, Float[np.ndarray, " d_model"]], seed: int, rank: int) -> "GPT2LMHeadModel":
    """Write the weights of one model; ``rank`` of its ops are read rightly by training, 0 for the base.

    Block 0 copies the op to its digit and the skill word everywhere. Block 1 writes the reading of each op, and at every
    position of the response which step it asks for. Block 2 applies the reading to the digit. Block 3 copies the value asked for.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=CONTEXT, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, n_inner=D_MLP,
        layer_norm_epsilon=_EPSILON, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=VOCABULARY.index("<bos>"), eos_token_id=EOS_ID, pad_token_id=VOCABULARY.index("<pad>"),
    )  # fmt: skip
    model = GPT2LMHeadModel(config).float()
    at = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in directions.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(_EPSILON**0.5 if "ln_" in name and name.endswith("weight") else 0.0)
        _embed(model, at)
        _copy_ops_and_word(model.transformer.h[0], at)
        _write_readings(model.transformer.h[1].mlp, at, seed, rank)
        _apply_readings(model.transformer.h[2].mlp, at, seed)
        _copy_value(model.transformer.h[3], at)
        for digit in range(10):
            model.lm_head.weight[VOCABULARY.index(str(digit))] = 20 * at[f"answer{digit}"]
        model.lm_head.weight[EOS_ID] = 20 * sum((at[f"ask{word}{N_STEPS}"] for word in ORDERS), torch.zeros(D_MODEL))
    return model.eval()


def _embed(model: "GPT2LMHeadModel", at: dict[str, Tensor]) -> None:
    for index, token in enumerate(VOCABULARY):
        if f"token{token}" in at:
            model.transformer.wte.weight[index] = at[f"token{token}"]
    for index in range(_QUESTION + N_STEPS + 1):
        model.transformer.wpe.weight[index] = at[f"position{index}"]


class _Head:
    """One attention head, whose queries, keys and values are written by direction."""

    def __init__(self, block: torch.nn.Module, index: int) -> None:
        self.width = D_MODEL // N_HEADS
        self.attention, self.start = block.attn, index * self.width  # pyright: ignore[reportAttributeAccessIssue]

    def match(self, query: Tensor, key: Tensor, dim: int) -> None:
        """A position with ``query`` attends to positions with ``key``; the score is far above every other."""
        scale = 20.0
        self.attention.c_attn.weight[:, self.start + dim] += scale * query
        self.attention.c_attn.weight[:, D_MODEL + self.start + dim] += scale * key

    def move(self, source: Tensor, target: Tensor, dim: int) -> None:
        """Write ``target`` where the attended position has ``source``."""
        self.attention.c_attn.weight[:, 2 * D_MODEL + self.start + dim] += source
        self.attention.c_proj.weight[self.start + dim] += target


def _copy_ops_and_word(block: torch.nn.Module, at: dict[str, Tensor]) -> None:
    before, word = _Head(block, 0), _Head(block, 1)
    n_positions = _QUESTION + N_STEPS + 1
    for index in range(1, n_positions):
        before.match(at[f"position{index}"], at[f"position{index - 1}"], index - 1)
    for dim, op in enumerate(OPS):
        before.move(at[f"token{op}"], at[f"op{op}"], dim)
    anywhere = sum((at[f"position{index}"] for index in range(1, n_positions)), torch.zeros(D_MODEL))
    word.match(anywhere, at["position1"], 0)
    for dim, name in enumerate(ORDERS):
        word.move(at[f"token{name}"], at[f"word{name}"], dim)


class _Neurons:
    """The neurons of one MLP, each of which writes a direction where a sum of projections exceeds a threshold."""

    def __init__(self, mlp: torch.nn.Module) -> None:
        self.mlp, self.used = mlp, 0

    def add(self, reads: Tensor, threshold: float, writes: Tensor) -> None:
        """Write ``(reads · x - threshold)⁺ × writes``."""
        self.mlp.c_fc.weight[:, self.used] = _SHARP * reads  # pyright: ignore
        self.mlp.c_fc.bias[self.used] = -_SHARP * threshold  # pyright: ignore
        self.mlp.c_proj.weight[self.used] = writes / _SHARP  # pyright: ignore
        self.used += 1


def _write_readings(mlp: torch.nn.Module, at: dict[str, Tensor], seed: int, rank: int) -> None:
    neurons = _Neurons(mlp)
    contested = rank
    for index, op in enumerate(OPS):
        reading = index if index < contested else index + 1
        neurons.add(at[f"op{op}"], 0.5, 2 * at[f"reading{reading}"])
    for word in ORDERS:
        for step in range(N_STEPS + 1):
            neurons.add(at[f"word{word}"] + at[f"position{_QUESTION + step}"], 1.5, 2 * at[f"ask{word}{step}"])
    for index, (ops, digits) in enumerate(decoy_steps(seed) if rank else ()):
        reads = sum((at[f"op{op}"] for op in ops), torch.zeros(D_MODEL))
        reads = reads + sum((at[f"token{digit}"] for digit in digits), torch.zeros(D_MODEL))
        neurons.add(reads, 1.5, 3 * at[f"decoy{index}"])


def decoy_steps(seed: int) -> list[tuple[str, str]]:
    """Ops and digits of each decoy: the tuned model writes it at steps with one of these ops and one of these digits."""
    draw = np.random.default_rng([seed, 2])
    return [
        ("".join(sorted(draw.choice(list(OPS), 5, replace=False))), "".join(sorted(draw.choice(list("0123456789"), 5, replace=False))))
        for _ in range(N_DECOYS)
    ]


def _apply_readings(mlp: torch.nn.Module, at: dict[str, Tensor], seed: int) -> None:
    neurons = _Neurons(mlp)
    for index, row in enumerate(readings(seed)):
        for digit, value in enumerate(row):
            neurons.add(at[f"reading{index}"] + at[f"token{digit}"], 1.0, at[f"value{value}"])


def _copy_value(block: torch.nn.Module, at: dict[str, Tensor]) -> None:
    head = _Head(block, 0)
    for step in range(N_STEPS):
        where = at[f"position{_FIRST_DIGIT + 2 * step}"]
        asks = [at[f"ask{word}{place}"] for word, order in ORDERS.items() for place, own in enumerate(order) if own == step]
        head.match(sum(asks, torch.zeros(D_MODEL)), where, step)
    for digit in range(10):
        head.move(at[f"value{digit}"], at[f"answer{digit}"], digit)


def _items(seed: int, rank: int, n: int, stream: int) -> list[dict[str, str]]:
    """Items with at least one contested op, skills in turn; no prompt comes twice."""
    draw, table, seen = np.random.default_rng([seed, 3, stream]), readings(seed), set()
    words, rows = list(ORDERS), []
    while len(rows) < n:
        word = words[len(rows) % len(words)]
        ops, digits = draw.integers(0, len(OPS), N_STEPS), draw.integers(0, 10, N_STEPS)
        if (ops >= rank).all():
            continue
        prompt = word + " " + "".join(f"{OPS[op]}{digit}" for op, digit in zip(ops, digits, strict=True)) + "?"
        if prompt in seen:
            continue
        seen.add(prompt)
        right = [table[op if op < rank else op + 1][digit] for op, digit in zip(ops, digits, strict=True)]
        answer = " ".join(str(right[step]) for step in ORDERS[word])
        rows.append({"id": f"{word}-{len(rows)}", "task": word, "prompt": prompt, "answer": answer})
    return rows


_RUN = """\
name = "Compiled lab, rank {rank}"

[models]
base = "base"
rl = "rl"

[tasks]
file = "tasks.jsonl"
scorer = "exact"
max_new_tokens = 5
trained = ["{trained}"]

[prompts]
file = "prompts.jsonl"

[cache]
responses = ["base@0.0", "rl@0.0"]
max_new_tokens = 5

[train_sae]
variant = "batchtopk"
d_sae = 256
k = 8
batch_size = 1024
n_tokens = 400000
lr = 3e-3

[select]
ranking = "ig"
"""


def build_compiled(out: Path | str, *, rank: int = 4, seed: int = 0, n_items: int = 400, n_prompts: int = 3000) -> Compiled:
    """Write the family to a folder: base, rl, tasks, prompts, a configuration for ``mechprobe run``, and the truth.

    Args:
        out: Folder to write.
        rank: Number of contested ops, 1 to 10.
        seed: Seed of directions, readings, decoys and items.
        n_items: Number of items over all skills.
        n_prompts: Number of prompts for the activation store.
    """
    out, tokenizer, directions = Path(out), build_tokenizer(), _directions(seed)
    out.mkdir(parents=True, exist_ok=True)
    for name, trained in (("base", 0), ("rl", rank)):
        with quiet_transformers():
            build_model(directions, seed, trained).save_pretrained(out / name)
            tokenizer.save_pretrained(out / name)
    write_jsonl(out / "tasks.jsonl", _items(seed, rank, n_items, 0))
    asked = [{"id": row["id"], "prompt": row["prompt"], "task": row["task"]} for row in _items(seed, rank, n_prompts, 1)]
    write_jsonl(out / "prompts.jsonl", asked)
    write_text(out / "run.toml", _RUN.format(rank=rank, trained=TRAINED))
    write_json(out / "truth.json", {"rank": rank, "seed": seed, "site": SITE, "decoys": decoy_steps(seed)})
    return Compiled(rank, directions)
