"""Saving, loading and comparing the models of a lab, and the surroundings in which they are trained."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

FROZEN = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
"""Parameters that post-training keeps fixed, so that the blocks carry the whole change."""
Frozen = Callable[[str], bool]
"""Whether post-training keeps a parameter fixed, from its name."""


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
    with quiet_transformers():
        rounded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return sorted(f.name for f in folder.iterdir() if f.name not in ("unfinished.json", "manifest.json"))


def load_model(folder: Path) -> "LlamaForCausalLM":
    """Load a folder written by `save_model` in float32, with all parameters trainable."""
    from transformers import LlamaForCausalLM

    with quiet_transformers():
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


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide progress bars, notices and deprecation warnings of transformers, datasets and TRL inside the ``with`` block."""
    import datasets
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    dataset_bars = not datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if dataset_bars:
            datasets.enable_progress_bars()
