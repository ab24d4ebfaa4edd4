"""Models that are added to a finished store."""

from pathlib import Path

import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.models.family import ModelFamily

SITE = "resid_post.1"


def test_adding_a_model_keeps_the_others_shards(llama_family: dict[str, Path], tmp_path: Path) -> None:
    config = CacheConfig(sites=(SITE,), held_out_frac=0)
    two = ModelFamily.load({name: llama_family[name] for name in ("base", "sft")})
    cache_activations(two, ["a prompt", "another"], out=tmp_path / "c", config=config)
    shard = tmp_path / "c" / "base" / "shard_00000.h5"
    written = shard.stat().st_mtime_ns
    store = cache_activations(
        ModelFamily.load(llama_family), ["a prompt", "another"], out=tmp_path / "c", config=config
    )
    assert store.models == ("base", "sft", "rl")
    assert shard.stat().st_mtime_ns == written
    fresh = cache_activations(
        ModelFamily.load(llama_family), ["a prompt", "another"], out=tmp_path / "d", config=config
    )
    assert torch.equal(store.rows(0, store.n_rows), fresh.rows(0, fresh.n_rows))
    assert store.verify() == []
