"""Interruption and damage: the same bytes after SIGKILL, every flipped bit found, a full disk is one sentence."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.shards import sole_writer
from mechprobe.errors import ArtifactError, StoreError
from mechprobe.models.family import ModelFamily

CONFIG = CacheConfig(
    sites=("resid_post.0", "resid_post.1"), shard_rows=40, held_out_frac=0.2, responses=("base@1.0",), max_new_tokens=4
)
PROMPTS = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(40)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store; of the manifest without what a clock says."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps(manifest | {"seconds": None, "digest": None}).encode()
    return files


def start(family: ModelFamily, out: Path) -> BaseProcess:
    """Cache in a process of its own, forked from a server that has the imports behind it and never ran anything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cache.preload"])
    process = context.Process(
        target=cache_activations, args=(family, PROMPTS), kwargs={"out": out, "config": CONFIG}, daemon=True
    )
    process.start()
    return process


def n_shards(out: Path) -> int:
    return len(list(out.glob("*/shard_*.h5")))


def test_sigkill_at_random_moments_changes_no_byte(llama_family: dict[str, Path], tmp_path: Path) -> None:
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
        os.kill(process.pid, signal.SIGKILL)
        process.join(timeout=60)
        assert process.exitcode in (0, -signal.SIGKILL), "the process stopped of itself"
        if not (out / "manifest.json").exists():
            with pytest.raises(ArtifactError, match="unfinished"):
                ActivationStore.open(out)
    store = cache_activations(ModelFamily.load(llama_family), PROMPTS, out=out, config=CONFIG)
    assert contents(out) == expected
    assert store.verify() == []


def test_an_interrupted_store_does_finished_shards_once(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.cache import stage as collect

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


def test_a_full_disk_is_one_sentence_and_resumes(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.cache.store import shards

    family, out, calls = ModelFamily.load(llama_family), tmp_path / "cache", []
    real = shards.h5py.File

    def filling(path: Path, mode: str = "r", **options: object) -> object:
        calls.append(mode)
        if mode == "w" and calls.count("w") == 4:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, **options)

    monkeypatch.setattr(shards.h5py, "File", filling)
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
    with sole_writer(out), pytest.raises(StoreError, match="Another process is writing"):
        cache_activations(family, ["abc"], ["resid_post.0"], out)
    assert cache_activations(family, ["abc"], ["resid_post.0"], out).n_rows == 3


def test_other_settings_are_refused_and_force_makes_it_again(llama_family: dict[str, Path], tmp_path: Path) -> None:
    family, out = ModelFamily.load({"base": llama_family["base"]}), tmp_path / "cache"
    config = CacheConfig(sites=("resid_post.0",))
    cache_activations(family, ["abc", "def"], out=out, config=config)
    with pytest.raises(ArtifactError, match=r'dtype: "float32".*"float16"'):
        cache_activations(family, ["abc", "def"], out=out, config=config.replace(dtype="float16"))
    with pytest.raises(ArtifactError, match="prompts"):
        cache_activations(family, ["abc", "deg"], out=out, config=config)
    store = cache_activations(family, ["abc", "deg"], out=out, config=config, force=True)
    assert store.tokens.token_id.max() > 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="was not written by mechprobe"):
        cache_activations(family, ["abc"], out=tmp_path / "mine", config=config, force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_every_flipped_bit_is_found(small_store: ActivationStore, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(small_store.folder, out)
    store = ActivationStore.open(out)
    assert store.verify() == []
    files = sorted(path for path in out.rglob("*") if path.is_file())
    rng = random.Random(1)
    for trial in range(200):
        path = files[trial % len(files)] if trial < len(files) else rng.choice(files)
        original = path.read_bytes()
        damaged = bytearray(original)
        bit = rng.randrange(8 * len(original))
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(damaged))
        try:
            problems = store.verify()
        except ArtifactError:  # the manifest can no longer be read at all
            problems = [path.name]
        assert problems, (path, bit)
        path.write_bytes(original)
    assert store.verify() == []


def test_a_missing_shard_is_found_and_named(small_store: ActivationStore, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(small_store.folder, out)
    (out / "rl" / "shard_00001.h5").unlink()
    store = ActivationStore.open(out)
    assert [str(problem) for problem in store.verify()] == ["rl/shard_00001.h5: is missing"]
    with pytest.raises(StoreError, match="missing or damaged"):
        store.rows(0, store.n_rows, "resid_post.1")
