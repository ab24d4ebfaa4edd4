"""`store verify` finds a change in every kind of file, and changed models and tokenizers are refused."""

import random
import shutil
from pathlib import Path

import pytest

from mechprobe.cache.config import CacheConfig, StoreSubset
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.verify import verify_store
from mechprobe.errors import ArtifactError, StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import Stage

CONFIG = CacheConfig(
    sites=("resid_post.0",), dtype="int8", shard_rows=60, held_out_frac=0.2, responses=("rl@0.0",), max_new_tokens=4
)
PROMPTS = [f"Prompt {index}" for index in range(30)]


@pytest.fixture(scope="module")
def kept(llama_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("damage") / "cache"
    rows = StoreSubset(rows=100, scale_rows=50)
    cache_activations(ModelFamily.load(llama_family), PROMPTS, out=out, config=CONFIG, kept=rows)
    return out


def test_a_flipped_bit_in_any_kind_of_file_is_found(kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(kept, out)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    kinds = {path.stem.split("_")[0] + path.suffix for path in files}
    assert kinds == {
        "manifest.json", "index.json", "shard.h5", "shard.json", "tokens.h5", "stream.h5", "chunk.json"
    }  # fmt: skip
    rng = random.Random(3)
    for trial in range(240):
        path = files[trial % len(files)]
        original = path.read_bytes()
        damaged = bytearray(original)
        bit = rng.randrange(8 * len(original))
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(damaged))
        try:
            problems = [problem.file for problem in ActivationStore.verify(_Folder(out))]  # type: ignore[arg-type]
        except ArtifactError:  # the manifest is no longer readable
            problems = ["manifest.json"]
        assert problems == [str(path.relative_to(out))] or path.name in ("manifest.json", "index.json"), (path, bit)
        assert problems, (path, bit)
        path.write_bytes(original)


def test_the_folder_of_another_stage_is_refused(kept: Path, tmp_path: Path) -> None:
    with Stage.open(
        tmp_path / "other", name="train-sae", config={}, inputs={"cache": kept}, models={"base": "0"}
    ) as stage:
        stage.finish(outputs=[])
    with pytest.raises(ArtifactError, match="train-sae"):
        verify_store(tmp_path / "other")


class _Folder:
    """What `ActivationStore.verify` uses of a store that may not open any more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder


def test_changed_weights_and_tokenizers_are_refused_with_both_fingerprints(
    kept: Path, llama_family: dict[str, Path], tmp_path: Path
) -> None:
    for name in llama_family:
        shutil.copytree(llama_family[name], tmp_path / name)
    paths = {name: tmp_path / name for name in llama_family}
    store = ActivationStore.open(kept)
    store.check_family(ModelFamily.load(paths))
    weights = paths["rl"] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(bytes(data))
    changed = ModelFamily.load(paths)
    with pytest.raises(StoreError) as caught:
        store.check_family(changed)
    assert store.fingerprints["rl"] in str(caught.value)
    assert changed["rl"].fingerprint in str(caught.value)
    with pytest.raises(ArtifactError, match=rf"models\.rl: .*{store.fingerprints['rl'][:40]}"):
        cache_activations(changed, PROMPTS, out=kept, config=CONFIG, kept=StoreSubset(rows=100, scale_rows=50))

    for name in paths:
        file = paths[name] / "tokenizer.json"
        text = file.read_text()
        assert '"<unk>": 3' in text
        file.write_text(
            text.replace('"<unk>": 3', '"<unknown>": 3').replace('"unk_token": "<unk>"', '"unk_token": "<unknown>"')
        )
    other = ModelFamily.load(paths)
    assert other.tokenizer_fingerprint != store.tokenizer_fingerprint
    with pytest.raises(StoreError) as caught:
        store.check_family(other)
    assert store.tokenizer_fingerprint in str(caught.value)
    assert other.tokenizer_fingerprint in str(caught.value)


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
        except ArtifactError:  # the manifest is no longer readable
            problems = [path.name]
        assert problems, (path, bit)
        path.write_bytes(original)
    assert store.verify() == []


def test_a_missing_shard_is_found_and_named(small_store: ActivationStore, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(small_store.folder, out)
    (out / "rl" / "shard_00001.h5").unlink()
    store = ActivationStore.open(out)
    assert [problem.file for problem in store.verify()] == ["rl/shard_00001.h5"]
    with pytest.raises(StoreError, match=r"rl/shard_00001\.h5"):
        store.rows(0, store.n_rows, "resid_post.1")
