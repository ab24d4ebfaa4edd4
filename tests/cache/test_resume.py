"""Interrupted stores: the same bytes after SIGKILL, shards are made once, and one error sentence for a full disk."""

import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.errors import ArtifactError, StoreError
from mechprobe.locks import sole_writer
from mechprobe.models.family import ModelFamily

CONFIG = CacheConfig(
    sites=("resid_post.0", "resid_post.1"), shard_rows=40, held_out_frac=0.2, responses=("base@1.0",), max_new_tokens=4
)
PROMPTS = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(40)]


def start(family: ModelFamily, out: Path) -> BaseProcess:
    """Cache in a new process, forked from a server that has only imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cache.preload"])
    process = context.Process(
        target=cache_activations, args=(family, PROMPTS), kwargs={"out": out, "config": CONFIG}, daemon=True
    )
    process.start()
    return process


def n_shards(out: Path) -> int:
    return len(list(out.glob("*/shard_*.h5")))


def test_sigkill_at_random_moments_changes_no_byte(
    llama_family: dict[str, Path], tmp_path: Path, contents: Callable
) -> None:
    cache_activations(ModelFamily.load(llama_family), PROMPTS, out=tmp_path / "whole", config=CONFIG)
    expected = contents(tmp_path / "whole")
    total = n_shards(tmp_path / "whole")
    rng = random.Random(0)
    out = tmp_path / "killed"
    family = ModelFamily.load(llama_family)
    for target in (-1, 0, total // 2, total - 2):
        process = start(family, out)
        deadline = time.monotonic() + 60
        while not (n_shards(out) > target and out.exists()) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * (1.0 if target < 0 else 0.02))
        assert process.pid is not None
        with suppress(ProcessLookupError):  # a fast machine may have finished
            os.kill(process.pid, signal.SIGKILL)
        process.join(timeout=60)
        assert process.exitcode in (0, -signal.SIGKILL), "the process failed by itself"
        if not (out / "manifest.json").exists():
            with pytest.raises(ArtifactError, match="unfinished"):
                ActivationStore.open(out)
    store = cache_activations(ModelFamily.load(llama_family), PROMPTS, out=out, config=CONFIG)
    assert contents(out) == expected
    assert store.verify() == []


def test_an_interrupted_store_makes_finished_shards_once(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.cache.harvest import collect

    family, out, done = ModelFamily.load(llama_family), tmp_path / "cache", []
    real = collect.collect_shard

    def counted(model: object, stream: object, shard: object, *rest: object) -> object:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append((model.name, shard.index))
        return real(model, stream, shard, *rest)

    monkeypatch.setattr(collect, "collect_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        cache_activations(family, PROMPTS, out=out, config=CONFIG)
    first, done[:] = list(done), []
    monkeypatch.setattr(collect, "collect_shard", lambda *a: (done.append((a[0].name, a[2].index)), real(*a))[1])
    store = cache_activations(family, PROMPTS, out=out, config=CONFIG)
    assert not set(first) & set(done)
    assert len(first) + len(done) == 3 * len(store.stream.shards)
    done.clear()
    cache_activations(family, PROMPTS, out=out, config=CONFIG)
    assert not done


def test_a_full_disk_is_reported_in_one_sentence_and_the_store_resumes(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.cache.store import disk

    family, out, calls = ModelFamily.load(llama_family), tmp_path / "cache", []
    real = disk.h5py.File

    def filling(path: Path, mode: str = "r", **options: object) -> object:
        calls.append(mode)
        if mode == "w" and calls.count("w") == 4:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, **options)

    monkeypatch.setattr(disk.h5py, "File", filling)
    with pytest.raises(StoreError, match="disk is full") as caught:
        cache_activations(family, PROMPTS, out=out, config=CONFIG)
    assert "\n" not in str(caught.value)
    assert not list(out.rglob("*.partial"))
    monkeypatch.undo()
    store = cache_activations(family, PROMPTS, out=out, config=CONFIG)
    assert store.verify() == []


def test_a_second_writer_is_refused(llama_family: dict[str, Path], tmp_path: Path) -> None:
    family, out = ModelFamily.load({"base": llama_family["base"]}), tmp_path / "cache"
    out.mkdir()
    with sole_writer(out), pytest.raises(StoreError, match=str(out)):
        cache_activations(family, ["abc"], ["resid_post.0"], out)
    assert cache_activations(family, ["abc"], ["resid_post.0"], out).n_rows == 3


def test_other_settings_are_refused_and_force_makes_it_again(llama_family: dict[str, Path], tmp_path: Path) -> None:
    family, out = ModelFamily.load({"base": llama_family["base"]}), tmp_path / "cache"
    config = CacheConfig(sites=("resid_post.0",))
    cache_activations(family, ["abc", "def"], out=out, config=config)
    with pytest.raises(ArtifactError, match=r"dtype.*float32.*float16"):
        cache_activations(family, ["abc", "def"], out=out, config=config.replace(dtype="float16"))
    with pytest.raises(ArtifactError, match="prompts"):
        cache_activations(family, ["abc", "deg"], out=out, config=config)
    store = cache_activations(family, ["abc", "deg"], out=out, config=config, force=True)
    assert store.tokens.token_id.max() > 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="mine"):
        cache_activations(family, ["abc"], out=tmp_path / "mine", config=config, force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
