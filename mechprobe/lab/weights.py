"""Saving, loading and comparing the models of a lab, and the surroundings in which they are trained."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mechprobe.posttrain.training import Frozen, quiet

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

FROZEN = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
"""Parameters that post-training keeps fixed, so that the blocks carry the whole change."""


def is_head(name: str) -> bool:
    """Whether a parameter belongs to embeddings, final norm or unembedding."""
    return name in FROZEN


def save_model(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> list[str]:
    """Write a complete Hugging Face folder with weights rounded to float16, and return the names of its files.

    All later measurements use the rounded weights.
    """
    if folder.exists():
        for file in folder.iterdir():
            if file.name not in ("unfinished.json", "manifest.json"):
                file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    rounded = copy.deepcopy(model).half()
    rounded.config.use_cache = True  # trainers disable it
    with quiet():
        rounded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return sorted(f.name for f in folder.iterdir() if f.name not in ("unfinished.json", "manifest.json"))


def load_model(folder: Path) -> "LlamaForCausalLM":
    """Load a folder written by `save_model` in float32, with all parameters trainable."""
    from transformers import LlamaForCausalLM

    with quiet():
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def frozen_equal(model: "LlamaForCausalLM", base: "LlamaForCausalLM", frozen: Frozen = is_head) -> bool:
    """Whether every fixed parameter equals that of the base bit by bit."""
    ours, theirs = model.state_dict(), base.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs if frozen(name))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use n threads inside the ``with`` block; the last bits of a training depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
