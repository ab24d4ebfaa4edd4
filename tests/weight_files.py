"""Models as folders of tensors, without a model: the weights stage reads files only."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def tensors(*, d: int = 24, ff: int = 40, vocab: int = 50, n_layers: int = 2, seed: int = 0) -> Tensors:
    """Random weights with the names of Llama."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    found = {"model.embed_tokens.weight": drawn(vocab, d), "model.norm.weight": 1 + drawn(d)}
    for layer in range(n_layers):
        at = f"model.layers.{layer}"
        found |= {
            f"{at}.self_attn.q_proj.weight": drawn(d, d),
            f"{at}.self_attn.q_proj.bias": drawn(d),
            f"{at}.mlp.up_proj.weight": drawn(ff, d),
            f"{at}.mlp.down_proj.weight": drawn(d, ff),
            f"{at}.input_layernorm.weight": 1 + drawn(d),
        }
    return found


def save(folder: Path, weights: Mapping[str, Tensor], **config: object) -> Path:
    """Write a model folder in one file."""
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    settings = {"model_type": "llama", "tie_word_embeddings": True} | config
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def save_sharded(folder: Path, weights: Mapping[str, Tensor]) -> Path:
    """Write the same model in three files."""
    save(folder, weights)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    placed = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        part = {name: weights[name].contiguous() for name in names[number::3]}
        save_file(part, folder / file)
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder
