"""SIGKILL eight times at random moments of `mechprobe cache`; experiments/lab/kill_cache.py does it fifty times."""

import json
import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cli import main

N_KILLS = 8


@pytest.mark.slow  # tests/cache/test_resume.py kills the harvest in the quick tests
def test_killed_at_random_moments_and_resumed(
    llama_family: dict[str, Path], tmp_path: Path, contents: Callable
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Prompt {i}: {'abcdefgh'[: i % 8]}"}) + "\n" for i in range(80)))
    settings = ["cache.shard_rows=40", "cache.responses=['base@1.0']", "cache.max_new_tokens=4"]
    command = ["cache", "--models", *(f"{name}={path}" for name, path in llama_family.items())]
    command += ["--prompts", str(prompts), "--sites", "resid_post.0,resid_post.1"]
    command += [part for setting in settings for part in ("--set", setting)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cache.preload"])

    def start(out: Path) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=main, args=([*command, "--out", str(out)],), daemon=True)
        process.start()
        return process

    server = context.Process(target=time.sleep, args=(0,))
    server.start()
    server.join(timeout=120)  # kills should not fall into the imports
    began = time.monotonic()
    process = start(tmp_path / "whole")
    process.join(timeout=120)
    assert process.exitcode == 0
    seconds = time.monotonic() - began
    expected = contents(tmp_path / "whole")
    rng, n_killed, out = random.Random(0), 0, tmp_path / "killed"
    while n_killed < N_KILLS:
        process = start(out)
        time.sleep(rng.random() * seconds * 0.7)
        process.kill()  # SIGKILL; no effect if the process has ended
        process.join(timeout=60)
        assert process.exitcode in (0, -signal.SIGKILL), "the process failed by itself"
        n_killed += process.exitcode != 0
        if (out / "manifest.json").is_file():
            assert contents(out) == expected
            shutil.rmtree(out)
    process = start(out)
    process.join(timeout=120)
    assert process.exitcode == 0
    assert contents(out) == expected
    store = ActivationStore.open(out)
    assert store.verify() == []
    rows = list(zip(store.tokens.sample.tolist(), store.tokens.position.tolist(), strict=True))
    assert len(set(rows)) == len(rows) == store.n_rows == sum(shard.n_rows for shard in store._models["rl"].shards)
