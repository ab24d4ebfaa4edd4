"""A store in memory, and crosscoders whose decoders are known."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.dictionary.stage import train_crosscoder
from mechprobe.models.family import ModelFamily
from mechprobe.records import write_jsonl
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig

NAMES = ("base", "sft", "rl")


@dataclass
class MemoryStore:
    """The part of an activation store that the features stage reads."""

    models: tuple[str, ...]
    x: Tensor
    tokens: SimpleNamespace

    @property
    def n_rows(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int, site: str | None = None) -> Tensor:
        return self.x[start:stop]


def make_store(x: Tensor, names: tuple[str, ...] = NAMES, sample_length: int = 10) -> MemoryStore:
    rows = np.arange(len(x))
    tokens = SimpleNamespace(
        token_id=rows % 7 + 4,
        sample=rows // sample_length,
        position=rows % sample_length + 1,
        is_response=rows % sample_length >= 5,
    )
    return MemoryStore(names, x, tokens)


def make_crosscoder(
    *,
    names: tuple[str, ...] = NAMES,
    d_model: int = 8,
    d_sae: int = 12,
    k: int = 3,
    seed: int = 0,
    variant: str = "topk",
) -> Crosscoder:
    """A crosscoder with random weights, different decoders per model, and scales other than 1."""
    config = CrosscoderConfig(
        n_models=len(names), d_model=d_model, d_sae=d_sae, k=k, model_names=names, variant=variant, shared_init=False
    )
    crosscoder = Crosscoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    crosscoder.set_scale([0.5 + 0.7 * index for index in range(len(names))])
    return crosscoder


@pytest.fixture
def crosscoder() -> Crosscoder:
    return make_crosscoder()


@pytest.fixture
def store() -> MemoryStore:
    generator = torch.Generator().manual_seed(5)
    return make_store(torch.randn(200, 3, 8, generator=generator) + 0.3)


@pytest.fixture(scope="session")
def run(llama_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache and crosscoder of a tiny family, on 60 prompts. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("run")
    prompts = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(10, 40) for b in (3, 17)]
    write_jsonl(folder / "prompts.jsonl", prompts)
    family = ModelFamily.load(llama_family)
    store = cache_activations(
        family, folder / "prompts.jsonl", ["resid_post.1"], folder / "cache", CacheConfig(held_out_frac=0.2)
    )
    shape = CrosscoderConfig(n_models=3, d_model=32, d_sae=48, k=6, model_names=family.names)
    schedule = TrainConfig(n_tokens=2000, batch_size=100, lr=1e-2)
    train_crosscoder(store, shape, schedule, folder / "crosscoder")
    return folder
