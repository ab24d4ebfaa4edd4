"""Both ways to record residuals agree for architectures other than Llama.

They agree bit by bit, or to float32 rounding if the bridge splits fused weights.
"""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
)

from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate, left_pad
from mechprobe.models.residuals import residuals_bridge, residuals_plain
from mechprobe.types import Site
from tests.builders import build_tokenizer

N_VOCAB = len(build_tokenizer())
SPECIAL = {"vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA_LIKE = {
    **SPECIAL, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, tuple[PretrainedConfig, float]] = {
    "gpt2": (GPT2Config(**SPECIAL, n_embd=32, n_layer=3, n_head=4, n_positions=64), 1e-6),
    "bloom": (BloomConfig(**SPECIAL, hidden_size=32, n_layer=3, n_head=4), 1e-5),  # accepts no position_ids
    "opt": (
        OPTConfig(
            **SPECIAL, hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32,
        ),
        0.0,
    ),
    "mistral": (MistralConfig(**LLAMA_LIKE), 0.0),
    "gemma3": (Gemma3TextConfig(**LLAMA_LIKE, head_dim=8), 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_both_readers_agree_and_generation_runs(name: str, tmp_path: Path) -> None:
    config, tolerance = CONFIGS[name]
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = ModelFamily.load({"base": tmp_path})["base"]
    assert (model.n_layers, model.d_model) == (3, 32)
    ids, mask = left_pad([tokenizer(text).input_ids for text in ("abc12", "x", "hello there")], 0, "cpu")
    for site in (Site(0), Site(1)):
        plain = residuals_plain(model, ids, mask, [site])[site][mask.bool()]
        bridged = residuals_bridge(model, ids, mask, [site])[site][mask.bool()]
        assert (plain - bridged).abs().max() <= tolerance
    assert len(generate(model.hf, tokenizer, ["abc", "d"], max_new_tokens=3)) == 2
