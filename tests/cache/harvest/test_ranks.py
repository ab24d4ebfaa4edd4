"""Several processes make the same store as one, byte for byte; when one dies, all end, and the store can resume."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.parts import cache_part, parse_part
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.errors import ArtifactError, ConfigError, StoreError
from mechprobe.launcher import ranks_of_environment
from mechprobe.models.devices import local_device
from mechprobe.models.family import ModelFamily
from mechprobe.ranks import Ranks

ROOT = Path(__file__).resolve().parents[3]
CONFIG = CacheConfig(
    sites=("resid_post.0", "resid_post.1"),
    shard_rows=100,
    held_out_frac=0.2,
    responses=("base@1.0", "rl@0.0"),
    max_new_tokens=4,
)
TEXTS = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(40)]


def torchrun(folder: Path, paths: dict[str, Path], texts: list[str], config: CacheConfig, n: int = 2) -> list[str]:
    """The command that caches with ``n`` processes."""
    prompts = folder / "prompts.jsonl"
    lines = [json.dumps({"id": str(index), "prompt": text}) for index, text in enumerate(texts)]
    prompts.write_text("\n".join(lines) + "\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"shard_rows": 0, "held_out_frac": 0, "max_new_tokens": 0, "responses": 0, "reader": 0}
    values = {key: json.dumps(value) for key, value in config.model_dump(mode="json").items() if key in settings}
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n),
        "--master-addr", "127.0.0.1", "--master-port", str(port),
        "-m", "mechprobe", "cache", "--models", *(f"{name}={path}" for name, path in paths.items()),
        "--prompts", str(prompts), "--sites", ",".join(config.sites), "--out", str(folder / "cache"),
        *(part for key, value in values.items() for part in ("--set", f"cache.{key}={value}")),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("mechprobe: ")]


def test_two_ranks_give_the_bytes_of_one(llama_family: dict[str, Path], tmp_path: Path, contents: Callable) -> None:
    paths = {name: llama_family[name] for name in ("base", "rl")}
    expected = cache_activations(ModelFamily.load(paths), TEXTS, out=tmp_path / "one", config=CONFIG)
    assert len(expected.stream.shards) > 3
    command = torchrun(tmp_path, paths, TEXTS, CONFIG)
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1, "only the first process prints"
    assert contents(tmp_path / "cache") == contents(tmp_path / "one")
    assert ActivationStore.open(tmp_path / "cache").verify() == []


def _child_of_rank(launcher: int, rank: int) -> int | None:
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "status").read_text()
            if f"PPid:\t{launcher}\n" in status and f"RANK={rank}".encode() in (entry / "environ").read_bytes().split(
                b"\0"
            ):
                return int(entry.name)
        except (OSError, ValueError):
            continue
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the process of a rank")
def test_a_dying_rank_ends_all_with_one_sentence_and_the_store_resumes(
    llama_family: dict[str, Path], tmp_path: Path, contents: Callable
) -> None:
    paths = {"base": llama_family["base"]}
    config = CacheConfig(sites=("resid_post.0",), shard_rows=20, held_out_frac=0.0, reader="bridge")
    texts = [f"{index} {'abcdefgh'[: index % 8]}" for index in range(800)]
    out = tmp_path / "cache"
    process = subprocess.Popen(
        torchrun(tmp_path, paths, texts, config), env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 240
        while len(list(out.glob("base/shard_*.h5"))) < 4 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        victim = _child_of_rank(process.pid, 1)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        _, stderr = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode != 0
    assert len(errors(stderr)) == 1, stderr
    assert "Another process" in errors(stderr)[0]
    with pytest.raises(ArtifactError, match="unfinished"):
        ActivationStore.open(out)
    n_kept = len(list(out.glob("base/shard_*.h5")))
    prompts = tmp_path / "prompts.jsonl"
    store = cache_activations(ModelFamily.load(paths), prompts, out=out, config=config)
    assert 4 <= n_kept < len(store.stream.shards)
    cache_activations(ModelFamily.load(paths), prompts, out=tmp_path / "one", config=config)
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.slow
def test_a_mistake_is_reported_once(llama_family: dict[str, Path], tmp_path: Path) -> None:
    command = torchrun(tmp_path, {"base": llama_family["base"]}, ["x" * 90], CONFIG.replace(responses=()))
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert len(errors(done.stderr)) == 1, done.stderr
    assert "91 tokens" in errors(done.stderr)[0]
    assert not (tmp_path / "cache").exists()


def test_parts_give_the_same_bytes(llama_family: dict[str, Path], tmp_path: Path, contents: Callable) -> None:
    paths, out = {name: llama_family[name] for name in ("base", "rl")}, tmp_path / "parts"
    cache_activations(ModelFamily.load(paths), TEXTS, out=tmp_path / "one", config=CONFIG)
    results = [
        cache_part(ModelFamily.load(paths), TEXTS, out=out, config=CONFIG, part=parse_part(f"{index}/2"))
        for index in (0, 1)
    ]
    assert "every part again" in results[0].next_step
    assert results[0].n_made == 0
    again = cache_part(ModelFamily.load(paths), TEXTS, out=out, config=CONFIG, part=parse_part("0/2"))
    assert "without --part" in again.next_step
    n_shards = again.n_made + results[1].n_made
    store = cache_activations(ModelFamily.load(paths), TEXTS, out=out, config=CONFIG)
    assert n_shards == 2 * len(store.stream.shards)
    assert contents(out) == contents(tmp_path / "one")
    done = cache_part(ModelFamily.load(paths), TEXTS, out=out, config=CONFIG, part=parse_part("1/2"))
    assert done.n_made == 0


def test_a_part_beside_others_leaves_their_files_and_keeps_whole_writers_out(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    from mechprobe.locks import sole_writer

    family, out = ModelFamily.load({"base": llama_family["base"]}), tmp_path / "parts"
    config = CONFIG.replace(responses=())
    cache_part(family, TEXTS, out=out, config=config, part=Ranks(0, 3))
    (out / "base" / "shard_00001.h5.partial").write_bytes(b"another part is writing")
    (out / "base" / ".shard_00001.h5.json.x.partial").write_bytes(b"and this")
    with sole_writer(out, part=True):
        cache_part(family, TEXTS, out=out, config=config, part=Ranks(2, 3))
        with pytest.raises(StoreError, match="Another process"):
            cache_activations(family, TEXTS, out=out, config=config)
        with pytest.raises(StoreError, match="Another process"):
            cache_activations(family, TEXTS, out=out, config=config, force=True)
    assert len(list(out.rglob("*.partial"))) == 2
    cache_activations(family, TEXTS, out=out, config=config)
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("text", ["", "3", "3/3", "-1/2", "a/b", "1/0"])
def test_a_malformed_part(text: str) -> None:
    with pytest.raises(ConfigError, match="--part"):
        parse_part(text)


def test_an_environment_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="MASTER_ADDR"), ranks_of_environment():
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE"), ranks_of_environment():
        pass


def test_each_local_process_uses_a_different_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert [local_device(device) for device in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]
