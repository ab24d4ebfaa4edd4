"""A small finished store that tests read or damage a copy of, and comparisons of stores file by file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.data.prompts import Prompt
from mechprobe.files import sha256_file
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


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Function that returns the bytes of every file of a store; the manifest without its times."""

    def contents_of(folder: Path) -> dict[str, bytes]:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        manifest = json.loads(files["manifest.json"])
        files["manifest.json"] = json.dumps(manifest | {"seconds": None, "digest": None}).encode()
        return files

    return contents_of


@pytest.fixture(scope="session")
def h5_hashes() -> Callable[[ActivationStore], dict[str, str]]:
    """Function that returns the sha256 of every HDF5 file of a store."""

    def hashes_of(store: ActivationStore) -> dict[str, str]:
        return {str(path.relative_to(store.folder)): sha256_file(path) for path in store.folder.rglob("*.h5")}

    return hashes_of
