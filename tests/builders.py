"""Tiny random model families with a small tokenizer, built from configs without network."""

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

if TYPE_CHECKING:  # conftest imports this file also in the process that only distributes the tests
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

    from mechprobe.models.devices import DeviceMap

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
PAD, BOS, EOS, UNK = range(4)
ARCHITECTURES = ("llama", "qwen3", "neox")
SPLIT: "DeviceMap" = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "lm_head": "cpu",
}
"""Places of a llama's modules, two of its three blocks on disk."""


def build_tokenizer(extra_words: tuple[str, ...] = ()) -> "PreTrainedTokenizerFast":
    """Build a tokenizer with one token per character and per extra upper-case word; <bos> precedes a prompt."""
    from transformers import PreTrainedTokenizerFast

    words = (*SPECIAL, *CHARACTERS, *extra_words)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    pattern = "|".join((*extra_words, r"[\s\S]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_config(
    architecture: str, *, vocab_size: int, n_layers: int = 3, d_model: int = 32, max_context: int = 64
) -> "PretrainedConfig":
    """Create the config of a tiny model of one architecture."""
    from transformers import GPTNeoXConfig, LlamaConfig, Qwen3Config

    shared = {
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": max_context,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
    }
    match architecture:
        case "llama":
            return LlamaConfig(**shared, num_key_value_heads=4)
        case "qwen3":
            return Qwen3Config(**shared, num_key_value_heads=2, head_dim=d_model // 4)
        case "neox":
            return GPTNeoXConfig(**shared)
        case _:
            raise ValueError(f"{architecture} is not one of {ARCHITECTURES}")


def build_family(
    folder: Path,
    architecture: str = "llama",
    *,
    names: tuple[str, ...] = ("base", "sft", "rl"),
    noise: float = 0.02,
    seed: int = 0,
    **config: int,
) -> dict[str, Path]:
    """Save one random model and perturbed variants of it, each a complete Hugging Face folder.

    Args:
        folder: Folder of the model folders.
        architecture: One of `ARCHITECTURES`.
        names: Names of the models; all but the first have Gaussian noise added to every weight.
        noise: Standard deviation of the noise.
        seed: Seed of weights and noise.
        config: Arguments of `build_config`.

    Returns:
        Name to folder.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer()
    settings = build_config(architecture, vocab_size=len(tokenizer), **config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the default 0.02, so that blocks have an effect
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    paths = {}
    for index, name in enumerate(names):
        if index:
            generator = torch.Generator().manual_seed(seed + 1 + index)
            model.load_state_dict(
                {
                    key: value + noise * torch.randn(value.shape, generator=generator)
                    if value.is_floating_point()
                    else value
                    for key, value in original.items()
                }
            )
        paths[name] = Path(folder) / name
        model.save_pretrained(paths[name])
        tokenizer.save_pretrained(paths[name])
    return paths


def swap_letters(folder: Path) -> None:
    """Give the letters a and b in the tokenizer of a model folder the ids of each other."""
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(data))
