"""A finished store: its layout on disk, its rows, and what it refuses to open."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.errors import ArtifactError, SiteError, StoreError
from mechprobe.models.family import ModelFamily

SITE = "resid_post.1"


def test_shards_are_plain_contiguous_hdf5(small_store: ActivationStore) -> None:
    assert len(small_store.stream.shards) >= 4
    for shard in small_store.stream.shards:
        with h5py.File(small_store.folder / "rl" / f"shard_{shard.index:05d}.h5") as file:
            assert set(file) == {"resid_post.0", "resid_post.1"}
            dataset = file[SITE]
            assert dataset.chunks is None
            assert dataset.compression is None
            assert dataset.attrs["dtype"] == "float32"
            assert dataset.shape == (len(shard.rows), 32)
            expected = small_store.rows_of("rl", shard.rows.start, shard.rows.stop, SITE).numpy()
            assert np.array_equal(dataset[:], expected)
    assert not list(small_store.folder.rglob("*.partial"))


def test_rows_stack_models_and_cross_shards(small_store: ActivationStore) -> None:
    border = small_store.stream.shards[1].rows.start
    rows = small_store.rows(border - 7, border + 200, SITE)
    assert rows.shape == (207, 3, 32)
    assert rows.dtype == torch.float32
    for index, name in enumerate(small_store.models):
        assert torch.equal(rows[:, index], small_store.rows_of(name, border - 7, border + 200, SITE))
    assert small_store.rows(5, 5, SITE).shape == (0, 3, 32)
    with pytest.raises(StoreError, match=str(small_store.n_rows)):
        small_store.rows(0, small_store.n_rows + 1, SITE)


def test_models_can_be_chosen_and_ordered(small_store: ActivationStore) -> None:
    turned = ActivationStore.open(small_store.folder, models=("rl", "base"))
    rows, whole = turned.rows(0, 9, SITE), small_store.rows(0, 9, SITE)
    assert torch.equal(rows[:, 0], whole[:, 2])
    assert torch.equal(rows[:, 1], whole[:, 0])
    with pytest.raises(StoreError, match=r"base, rl, sft.*'rll'"):
        ActivationStore.open(small_store.folder, models=("rll",))


def test_sites_must_be_named_and_exist(small_store: ActivationStore) -> None:
    with pytest.raises(SiteError, match=r"resid_post\.0, resid_post\.1"):
        small_store.rows(0, 1)
    with pytest.raises(SiteError, match=r"resid_post\.2"):
        small_store.rows(0, 1, "resid_post.2")


def test_models_of_different_widths_are_concatenated(tmp_path: Path) -> None:
    from tests.builders import build_family

    narrow = build_family(tmp_path / "n", names=("base",))["base"]
    wide = build_family(tmp_path / "w", names=("base",), d_model=48)["base"]
    family = ModelFamily.load({"narrow": narrow, "wide": wide})
    store = cache_activations(family, ["some text"], [SITE], tmp_path / "cache")
    assert store.rows(0, 4).shape == (4, 80)
    assert torch.equal(store.rows(0, 4)[:, 32:], store.rows_of("wide", 0, 4))
    assert next(iter(store.batches(3))).shape == (3, 80)
    with pytest.raises(StoreError, match=r"32.*48"):
        _ = store.d_model


def test_a_changed_model_is_refused_with_both_fingerprints(
    llama_family: dict[str, Path], small_store: ActivationStore, small_work: dict
) -> None:
    small_store.check_family(ModelFamily.load(llama_family))
    swapped = ModelFamily.load({**llama_family, "rl": llama_family["sft"]})
    with pytest.raises(StoreError) as caught:
        small_store.check_family(swapped)
    assert small_store.fingerprints["rl"] in str(caught.value)
    assert swapped["rl"].fingerprint in str(caught.value)
    with pytest.raises(ArtifactError, match=r"models\.rl"):
        cache_activations(swapped, out=small_store.folder, **small_work)


def test_folders_that_are_not_a_store(small_store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="none"):
        ActivationStore.open(tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtifactError, match="other"):
        ActivationStore.open(tmp_path / "other")
    copy = tmp_path / "copy"
    shutil.copytree(small_store.folder, copy)
    (copy / "manifest.json").rename(copy / "unfinished.json")
    with pytest.raises(ArtifactError, match="unfinished"):
        ActivationStore.open(copy)


def test_shards_of_another_store_are_not_read(
    llama_family: dict[str, Path], small_store: ActivationStore, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_store.folder, copy)
    shutil.copy(copy / "sft" / "shard_00000.h5", copy / "rl" / "shard_00000.h5")
    with pytest.raises(StoreError, match=r"rl/shard_00000\.h5.*sft.*rl"):
        ActivationStore.open(copy).rows(0, 1, SITE)
