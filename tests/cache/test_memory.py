"""Out of memory: smaller batches for the rest, written down, and never a silent change of bytes."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mechprobe.cache import stage as collect
from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest import preparation as reading, readers
from mechprobe.cache.harvest.memory import with_less_memory
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.errors import StoreError
from mechprobe.files import sha256_file
from mechprobe.models.family import ModelFamily
from mechprobe.models.residuals import residuals_bridge, residuals_plain

PROMPTS = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(40)]
CONFIG = CacheConfig(sites=("resid_post.1",), shard_rows=150, batch_tokens=512)


def shards(store: ActivationStore) -> dict[str, str]:
    return {str(path.relative_to(store.folder)): sha256_file(path) for path in sorted(store.folder.rglob("*.h5"))}


def small_device(read: Callable, most: int) -> Callable:
    """A reader on a device whose memory holds so many tokens."""

    def reading(model: object, ids: torch.Tensor, *rest: object) -> object:
        if ids.numel() > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. {ids.numel()} tokens\nand a long report")
        return read(model, ids, *rest)

    return reading


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(readers, "residuals_plain", small_device(residuals_plain, most))
    monkeypatch.setattr(readers, "residuals_bridge", small_device(residuals_bridge, most))


def test_the_store_is_that_of_the_smaller_batches_and_says_so(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    family = ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})
    expected = cache_activations(family, PROMPTS, out=tmp_path / "e", config=CONFIG.replace(batch_tokens=128))
    limit(monkeypatch, 140)
    with caplog.at_level(logging.WARNING):
        store = cache_activations(family, PROMPTS, out=tmp_path / "c", config=CONFIG)
    assert shards(store) == shards(expected) | {"tokens.h5": shards(store)["tokens.h5"]}
    changes = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert [text.rsplit(" = ", 1)[1] for text in changes] == ["256.", "128."], "once a change, not once a model"
    n_shards = len(store.stream.shards)
    forward = store.manifest["results"]["forward"]
    for name in ("base", "rl"):
        assert forward[name]["shards_by_batch_tokens"] == {"128": n_shards}
    assert store.verify() == []


def test_an_interrupted_run_goes_on_with_the_smaller_size(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert shards(store) | {"tokens.h5": ""} == shards(expected) | {"tokens.h5": ""}


def test_one_sequence_too_many_is_one_sentence(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 5)
    family = ModelFamily.load({"base": llama_family["base"]})
    with pytest.raises(StoreError, match="does not hold one sequence") as caught:
        cache_activations(family, PROMPTS, out=tmp_path / "c", config=CONFIG)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "c").rglob("shard_*"))


def test_generation_goes_on_with_fewer_prompts(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = reading.generate

    def small(*arguments: object, batch_size: int, **options: object) -> object:
        if batch_size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, batch_size=batch_size, **options)

    config = CONFIG.replace(responses=("base@0.0",), max_new_tokens=3, generation_batch=64)
    family = ModelFamily.load({"base": llama_family["base"]})
    expected = cache_activations(family, PROMPTS, out=tmp_path / "e", config=config.replace(generation_batch=16))
    monkeypatch.setattr(reading, "generate", small)
    with caplog.at_level(logging.WARNING):
        store = cache_activations(family, PROMPTS, out=tmp_path / "c", config=config)
    assert caplog.text.count("going on with generation_batch") == 2
    assert store.stream_hash == expected.stream_hash


def test_only_memory_is_retried() -> None:
    tried = []

    def broken(size: int) -> None:
        tried.append(size)
        raise RuntimeError("size mismatch" if len(tried) > 2 else "DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="size mismatch"):
        with_less_memory(broken, 64, smallest=1, name="n", where="here")
    assert tried == [64, 32, 16]
