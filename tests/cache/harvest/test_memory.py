"""Out of memory: smaller batches from then on, recorded in the store, and never a silent change of bytes."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest import collect, forward_batches, responses
from mechprobe.cache.stage import cache_activations
from mechprobe.errors import StoreError
from mechprobe.models.devices import with_less_memory
from mechprobe.models.family import ModelFamily
from mechprobe.models.residuals import residuals_bridge, residuals_plain

PROMPTS = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(40)]
CONFIG = CacheConfig(sites=("resid_post.1",), shard_rows=150, batch_tokens=512)


def small_device(residuals: Callable, most: int) -> Callable:
    """A residuals function on a device whose memory holds ``most`` tokens."""

    def limited(model: object, ids: torch.Tensor, *rest: object) -> object:
        if ids.numel() > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. {ids.numel()} tokens\nand a long report")
        return residuals(model, ids, *rest)

    return limited


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(forward_batches, "residuals_plain", small_device(residuals_plain, most))
    monkeypatch.setattr(forward_batches, "residuals_bridge", small_device(residuals_bridge, most))


def test_the_store_equals_that_of_the_smaller_batches_and_records_them(
    llama_family: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    h5_hashes: Callable,
) -> None:
    family = ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})
    expected = cache_activations(family, PROMPTS, out=tmp_path / "e", config=CONFIG.replace(batch_tokens=128))
    limit(monkeypatch, 140)
    with caplog.at_level(logging.WARNING):
        store = cache_activations(family, PROMPTS, out=tmp_path / "c", config=CONFIG)
    assert h5_hashes(store) == h5_hashes(expected) | {"tokens.h5": h5_hashes(store)["tokens.h5"]}
    changes = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert [text.rsplit(" = ", 1)[1] for text in changes] == ["256.", "128."], "one warning per change, not per model"
    n_shards = len(store.stream.shards)
    forward = store.manifest["results"]["forward"]
    for name in ("base", "rl"):
        assert forward[name]["shards_by_batch_tokens"] == {"128": n_shards}
    assert store.verify() == []


def test_an_interrupted_run_resumes_with_the_smaller_size(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, h5_hashes: Callable
) -> None:
    family = ModelFamily.load({"base": llama_family["base"]})
    real, sizes = collect.collect_shard, list[int]()

    def stopped(*arguments: object) -> object:
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(1)
        return real(*arguments)

    limit(monkeypatch, 140)
    monkeypatch.setattr(collect, "collect_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        cache_activations(family, PROMPTS, out=tmp_path / "c", config=CONFIG)
    monkeypatch.undo()
    store = cache_activations(family, PROMPTS, out=tmp_path / "c", config=CONFIG)
    expected = cache_activations(family, PROMPTS, out=tmp_path / "e", config=CONFIG.replace(batch_tokens=128))
    assert h5_hashes(store) | {"tokens.h5": ""} == h5_hashes(expected) | {"tokens.h5": ""}


def test_a_sequence_that_does_not_fit_in_memory_is_one_sentence(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 5)
    family = ModelFamily.load({"base": llama_family["base"]})
    with pytest.raises(StoreError, match=r"base, shard 0.*out of memory") as caught:
        cache_activations(family, PROMPTS, out=tmp_path / "c", config=CONFIG)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "c").rglob("shard_*"))


def test_generation_continues_with_fewer_prompts(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = responses.generate

    def small(*arguments: object, batch_size: int, **options: object) -> object:
        if batch_size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, batch_size=batch_size, **options)

    config = CONFIG.replace(responses=("base@0.0",), max_new_tokens=3, generation_batch=64)
    family = ModelFamily.load({"base": llama_family["base"]})
    expected = cache_activations(family, PROMPTS, out=tmp_path / "e", config=config.replace(generation_batch=16))
    monkeypatch.setattr(responses, "generate", small)
    with caplog.at_level(logging.WARNING):
        store = cache_activations(family, PROMPTS, out=tmp_path / "c", config=config)
    assert caplog.text.count("generation_batch") == 2
    assert store.stream_hash == expected.stream_hash


def test_only_memory_is_retried() -> None:
    tried = []

    def broken(size: int) -> None:
        tried.append(size)
        raise RuntimeError("size mismatch" if len(tried) > 2 else "DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="size mismatch"):
        with_less_memory(broken, 64, smallest=1, name="n", where="here")
    assert tried == [64, 32, 16]
