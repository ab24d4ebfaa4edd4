"""Out of memory: the store has the bytes of whole batches, and a sequence that does not fit is one sentence."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.errors import OutOfMemoryError
from mechprobe.memory import forget_limits
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.progress import forget_told

PROMPTS = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(40)]
CONFIG = CacheConfig(sites=("resid_post.1",), shard_rows=150, batch_tokens=512, reader="plain")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes forward calls of more than so many tokens run out of memory."""
    load = LanguageModel._load

    def limit(most: int) -> None:
        def refuse(_module: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            ids = given["input_ids"] if "input_ids" in given else args[0]
            if ids.numel() > most:
                raise torch.OutOfMemoryError(f"CUDA out of memory. {ids.numel()} tokens\nand a long report")

        def limited(self: LanguageModel, attention: str = "eager") -> Any:
            model = load(self, attention)
            model.register_forward_pre_hook(refuse, with_kwargs=True)
            return model

        monkeypatch.setattr(LanguageModel, "_load", limited)

    forget_limits()
    forget_told()
    yield limit
    forget_limits()


def test_the_store_has_the_same_bytes(
    llama_family: dict[str, Path],
    tmp_path: Path,
    limit: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
    h5_hashes: Callable,
) -> None:
    folders = {name: llama_family[name] for name in ("base", "rl")}
    expected = cache_activations(ModelFamily.load(folders), PROMPTS, out=tmp_path / "e", config=CONFIG)
    limit(140)
    with caplog.at_level(logging.WARNING):
        store = cache_activations(ModelFamily.load(folders), PROMPTS, out=tmp_path / "c", config=CONFIG)
    assert h5_hashes(store) == h5_hashes(expected)
    lines = [record.getMessage() for record in caplog.records if "memory ran out" in record.getMessage()]
    assert len(lines) == 1, "one line, not one per model"
    assert store.verify() == []


def test_a_sequence_that_does_not_fit_in_memory_is_one_sentence(
    llama_family: dict[str, Path], tmp_path: Path, limit: Callable[[int], None]
) -> None:
    limit(5)
    family = ModelFamily.load({"base": llama_family["base"]})
    with pytest.raises(OutOfMemoryError, match=r"one of the sequences alone.*out of memory") as caught:
        cache_activations(family, PROMPTS, out=tmp_path / "c", config=CONFIG)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "c").rglob("shard_*"))


def test_generation_continues_with_fewer_prompts(
    llama_family: dict[str, Path], tmp_path: Path, limit: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    config = CONFIG.replace(responses=("base@0.0",), max_new_tokens=3, generation_batch=64)
    folders = {"base": llama_family["base"]}
    expected = cache_activations(ModelFamily.load(folders), PROMPTS, out=tmp_path / "e", config=config)
    limit(200)
    with caplog.at_level(logging.WARNING):
        store = cache_activations(ModelFamily.load(folders), PROMPTS, out=tmp_path / "c", config=config)
    assert caplog.text.count("Generation: memory ran out") == 1
    assert store.stream_hash == expected.stream_hash
