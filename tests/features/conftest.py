"""A store in memory, and crosscoders whose decoders are known."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_training import Crosscoder, CrosscoderConfig

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
    """Random weights of every kind, different decoders per model, scales that are not 1."""
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
