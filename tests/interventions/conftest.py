"""Tiny families as `ModelFamily`, and a random crosscoder over their three models."""

from pathlib import Path

import pytest
import torch

from mechprobe.models.family import ModelFamily
from sae_training import Crosscoder, CrosscoderConfig


def random_crosscoder(variant: str = "batchtopk", d_model: int = 32, seed: int = 0) -> Crosscoder:
    """Untrained, with distinct encoders, decoders, biases and scales for every model."""
    config = CrosscoderConfig(
        n_models=3, d_model=d_model, d_sae=48, k=6, variant=variant, model_names=("base", "sft", "rl"), seed=seed
    )
    crosscoder = Crosscoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        crosscoder.threshold.fill_(0.05)
    crosscoder.set_scale([0.8, 1.1, 1.3])
    return crosscoder.eval()


@pytest.fixture(scope="session")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load(llama_family)


@pytest.fixture(scope="session")
def crosscoder() -> Crosscoder:
    return random_crosscoder()
