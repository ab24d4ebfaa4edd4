"""Tiny families in which one token is an attention sink: its residual has an enormous norm in every model."""

from pathlib import Path

import torch

from mechprobe.data.prompts import Prompt

SINK = "#"


def add_sink(paths: dict[str, Path], out: Path, factor: float = 3000.0) -> dict[str, Path]:
    """Copies of saved models whose embedding of `SINK` is multiplied by ``factor``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = {}
    for name, path in paths.items():
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
            AutoTokenizer.from_pretrained(path),
        )
        with torch.no_grad():
            model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(SINK)] *= factor
        made[name] = out / name
        model.save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


def scattered(n: int = 60) -> list[Prompt]:
    """Prompts with a sink somewhere in every third of them."""
    return [Prompt(id=f"p{i}", prompt=f"text {i * 31 % 97} {SINK if i % 3 == 0 else 'x'} ends {i}") for i in range(n)]
