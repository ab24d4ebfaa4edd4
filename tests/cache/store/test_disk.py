"""A full disk: one error sentence, complete files only, and the same bytes once there is space."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CHILD = """
import gc, json, os, resource, sys
from pathlib import Path
from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest import collect
from mechprobe.cache.stage import cache_activations
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily

kind, models, scratch, disk = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
family = ModelFamily.load({name: f"{models}/{name}" for name in ("base", "sft", "rl")})
config = CacheConfig(sites=("resid_post.0",), shard_rows=200, held_out_frac=0.2)
prompts = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(60)]

def contents(folder):
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps(manifest | {"seconds": None, "digest": None}).encode()
    return files

cache_activations(family, prompts, out=scratch / "whole", config=config)
gc.freeze()  # releasing a model collects garbage, and the imported libraries should not slow that down
real, calls, filler = collect.collect_shard, [], disk / "filler"

def filling(*args):
    calls.append(1)
    if len(calls) == 5 and kind == "full":
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
    if len(calls) == 5 and kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))
    return real(*args)

collect.collect_shard = filling
out = disk / "cache"
try:
    cache_activations(family, prompts, out=out, config=config)
except StoreError as error:
    message = str(error)
left = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
filler.unlink(missing_ok=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
n_before = len(calls)
store = cache_activations(family, prompts, out=out, config=config)
print(json.dumps({
    "message": message, "left": left, "made_again": len(calls) - n_before,
    "same": contents(out) == contents(scratch / "whole"), "problems": [str(p) for p in store.verify()],
    "shards": 3 * len(store.stream.shards),
}))
"""


def run(command: list[str]) -> dict:
    import json

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict, fact: str) -> None:
    assert fact in found["message"]
    assert "\n" not in found["message"]
    assert not [name for name in found["left"] if name.endswith(".partial")]
    assert "manifest.json" not in found["left"]
    assert found["made_again"] == found["shards"] - 4
    assert found["same"]
    assert found["problems"] == []


def test_a_small_file_system_that_fills_up(llama_family: dict[str, Path], tmp_path: Path) -> None:
    disk, script = tmp_path / "disk", tmp_path / "child.py"
    disk.mkdir()
    script.write_text(CHILD)
    mount = f"mount -t tmpfs -o size=1m tmpfs '{disk}'"
    try:
        able = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed: no private file system can be mounted")
    if able.returncode != 0:
        pytest.skip(f"a private tmpfs needs the right to mount: {able.stderr.strip()}")
    models = llama_family["base"].parent
    inside = f"{mount} && exec '{sys.executable}' '{script}' full '{models}' '{tmp_path}' '{disk}'"
    check(run(["unshare", "-m", "sh", "-c", inside]), "disk is full")


def test_a_limit_on_the_size_of_files(llama_family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    models = llama_family["base"].parent
    check(run([sys.executable, "-c", CHILD, "limit", str(models), str(tmp_path), str(tmp_path / "disk")]), "ulimit -f")
