"""Exports hold the rows of the store, open with other libraries, and need little memory."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.dtypes import from_stored
from mechprobe.cache.store.export import export_numpy, export_safetensors
from mechprobe.cli import main
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily

SITE = "resid_post.1"
TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8, "e4m3": torch.float8_e4m3fn}


@pytest.fixture(scope="module", params=["bfloat16", "float16", "int8", "e4m3"])
def store(
    request: pytest.FixtureRequest, llama_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> ActivationStore:
    family = ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})
    config = CacheConfig(sites=("resid_post.0", SITE), dtype=request.param, shard_rows=60)
    prompts = [f"Number {index}" for index in range(20)]
    return cache_activations(family, prompts, out=tmp_path_factory.mktemp("export") / "cache", config=config)


def test_safetensors(store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechprobe.cache.store.export.CHUNK_ROWS", 37)
    path = tmp_path / "deep" / "all.safetensors"
    assert export_safetensors(store, path) == path.stat().st_size
    tensors = load_file(path)
    for name in store.models:
        found = tensors[f"{SITE}/{name}"]
        assert found.dtype == TORCH[store.dtype]
        value = found.float()
        if f"{SITE}/{name}.scale" in tensors:
            value = value * tensors[f"{SITE}/{name}.scale"][:, None]
        assert torch.equal(value, store.rows_of(name, 0, store.n_rows, SITE))
    assert torch.equal(tensors["tokens/held_out"], torch.from_numpy(store.tokens.held_out))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["stream"] == store.stream_hash
        assert file.metadata()["model rl"] == store.fingerprints["rl"]
    with pytest.raises(StoreError, match=r"all\.safetensors"):
        export_safetensors(store, path)
    export_safetensors(store, tmp_path / "f.safetensors", "float32")
    found = load_file(tmp_path / "f.safetensors")[f"{SITE}/rl"]
    assert torch.equal(found, store.rows_of("rl", 0, store.n_rows, SITE))


def test_numpy(store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechprobe.cache.store.export.CHUNK_ROWS", 37)
    export_numpy(store, tmp_path / "out")
    layout = json.loads((tmp_path / "out" / "layout.json").read_text())
    assert layout["stream"] == store.stream_hash
    for name, about in layout["arrays"].items():
        array = np.load(tmp_path / "out" / f"{name}.npy", mmap_mode="r")
        assert isinstance(array, np.memmap)
        assert list(array.shape) == about["shape"]
    assert layout["arrays"][f"{SITE}/rl"]["dtype"] == store.dtype
    array = np.load(tmp_path / "out" / SITE / "rl.npy")
    if store.dtype in ("float16", "bfloat16"):
        found = from_stored(array, store.dtype).float()
    else:
        scale = torch.from_numpy(np.load(tmp_path / "out" / SITE / "rl.scale.npy"))
        found = torch.from_numpy(array).view(TORCH[store.dtype]).float() * scale[:, None]
    assert torch.equal(found, store.rows_of("rl", 0, store.n_rows, SITE))
    assert np.array_equal(np.load(tmp_path / "out" / "tokens" / "token_id.npy"), store.tokens.token_id)
    export_numpy(store, tmp_path / "values", "float32")
    assert np.array_equal(
        np.load(tmp_path / "values" / SITE / "base.npy"), store.rows_of("base", 0, store.n_rows, SITE).numpy()
    )
    assert not list(tmp_path.rglob("*.partial"))


def test_an_interrupted_export_leaves_nothing(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechprobe.cache.store.export.CHUNK_ROWS", 37)
    calls = []

    def stopping(self: ActivationStore, *args: object) -> np.ndarray:
        calls.append(args)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(self, *args)

    real = ActivationStore.stored_rows_of
    monkeypatch.setattr(ActivationStore, "stored_rows_of", stopping)
    for export, name in ((export_numpy, "folder"), (export_safetensors, "file.safetensors")):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            export(store, tmp_path / name)
        assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_store(
    small_store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of this store are made up on demand: 200,000 rows × 32 × 4 bytes × 6 arrays = 154 MB."""
    n_rows = 200_000
    store = ActivationStore.open(small_store.folder)
    monkeypatch.setattr(store, "n_rows", n_rows)
    monkeypatch.setattr(
        ActivationStore, "stored_rows_of", lambda self, model, a, b, site: np.zeros((b - a, 32), dtype="<f4")
    )
    for export, name in ((export_numpy, "folder"), (export_safetensors, "file.safetensors")):
        tracemalloc.start()
        n_bytes = export(store, tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n_bytes > 150e6
        assert peak < 10e6


def test_export_through_the_command_line(
    small_store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(small_store.folder)
    assert main(["store", "export", folder, "--out", str(tmp_path / "npy")]) == 0
    assert main(["store", "export", folder, "--out", str(tmp_path / "x"), "--format", "safetensors", "--float32"]) == 0
    assert np.load(tmp_path / "npy" / SITE / "rl.npy").shape == (small_store.n_rows, 32)
    assert f"{SITE}/rl" in load_file(tmp_path / "x")
    capsys.readouterr()
    assert main(["store", "export", folder, "--out", str(tmp_path / "y"), "--format", "zarr"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
