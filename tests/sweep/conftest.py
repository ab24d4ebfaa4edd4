"""Toy reward models and judges, labelled as such, and a small tasks file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, GPT2Config, LlamaConfig

from tests.builders import BOS, EOS, PAD, build_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def _config(kind: str, vocab: int, labels: int) -> Any:
    shared = {"vocab_size": vocab, "num_labels": labels, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if kind == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        return LlamaConfig(**shared, **sizes, max_position_embeddings=64)
    if kind == "gpt2":  # learned absolute positions, and no padding token in its config
        return GPT2Config(**{**shared, "pad_token_id": None}, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertConfig(**shared, **sizes, max_position_embeddings=64)


@pytest.fixture
def toy_reward(tmp_path: Path) -> Callable[..., Path]:
    """Build a random reward model: ``toy_reward(kind, chat=..., labels=..., padding_side=...)`` returns its folder."""

    def build(kind: str = "llama", *, chat: bool = False, labels: int = 1, padding_side: str = "left") -> Path:
        tokenizer = build_tokenizer()
        if chat:
            tokenizer.chat_template = TEMPLATE
            tokenizer.pad_token = (
                tokenizer.eos_token
            )  # as in many reward models: every text ends with its padding token
        tokenizer.padding_side = padding_side
        config = _config(kind, len(tokenizer), labels)
        if chat:
            config.pad_token_id = EOS
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = AutoModelForSequenceClassification.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
        folder = tmp_path / f"toy-reward-{kind}-{chat}-{labels}-{padding_side}"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Six questions, of which the models of the tiny families answer none."""
    path = tmp_path / "questions.jsonl"
    lines = ({"id": f"q{i}", "task": "sums", "prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(6))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
