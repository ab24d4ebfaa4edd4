"""A small finished store that tests read and, copied, damage."""

from pathlib import Path

import pytest

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.data.prompts import Prompt
from mechprobe.models.family import ModelFamily

PROMPTS = [
    Prompt(id=f"p{index}", prompt=f"Say {index} twice."[: 5 + index % 12], response="ok" * (index % 4) or None)
    for index in range(60)
]
CONFIG = CacheConfig(sites=("resid_post.0", "resid_post.1"), shard_rows=150, held_out_frac=0.2)


@pytest.fixture(scope="session")
def small_work() -> dict:
    """Prompts and settings of `small_store`."""
    return {"prompts": PROMPTS, "config": CONFIG}


@pytest.fixture(scope="session")
def small_store(llama_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    out = tmp_path_factory.mktemp("small") / "cache"
    return cache_activations(ModelFamily.load(llama_family), PROMPTS, out=out, config=CONFIG)
