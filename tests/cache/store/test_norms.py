"""Norms of a store's rows: what is reported, which rule is proposed, and which rows the rule drops."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mechprobe.cache.config import CacheConfig, StoreSubset
from mechprobe.cache.result import far_sentence
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.norms import ShardNorms
from mechprobe.cli.stage_lines import store_lines
from mechprobe.data.prompts import Prompt
from mechprobe.errors import ConfigError
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import read_manifest
from mechprobe.types import Site
from tests.sinks import SINK, add_sink, scattered

CONFIG = CacheConfig(sites=("resid_post.0", "resid_post.1"), shard_rows=300, held_out_frac=0.2)
SITE = Site(1)


@pytest.fixture(scope="module")
def paths(llama_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return add_sink({name: llama_family[name] for name in ("base", "rl")}, tmp_path_factory.mktemp("sinks"))


@pytest.fixture(scope="module")
def plain(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    out = tmp_path_factory.mktemp("plain") / "c"
    return cache_activations(ModelFamily.load(paths), scattered(), out=out, config=CONFIG)


@pytest.fixture(scope="module")
def dropping(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    out, config = tmp_path_factory.mktemp("dropping") / "c", CONFIG.replace(drop_norm_above=10)
    return cache_activations(ModelFamily.load(paths), scattered(), out=out, config=config)


def is_sink(store: ActivationStore) -> np.ndarray:
    norms = [store.rows_of(name, 0, store.n_rows, SITE).norm(dim=1).numpy() for name in store.models]
    return np.any([norm > 10 * np.median(norm) for norm in norms], axis=0)


def test_quantiles_far_rows_and_massive_dimensions_are_those_of_the_rows(plain: ActivationStore) -> None:
    assert plain.norms is not None
    for name in plain.models:
        for site in plain.sites:
            rows = plain.rows_of(name, 0, plain.n_rows, site).double()
            norm, found = rows.norm(dim=1), plain.norms.models[name][str(site)]
            assert found.median == pytest.approx(float(norm.median()), rel=1e-12)
            assert found.q99 == pytest.approx(float(np.quantile(norm.numpy(), 0.99)), rel=1e-12)
            assert found.largest == pytest.approx(float(norm.max()), rel=1e-12)
            assert found.n_far == int((norm > 10 * norm.median()).sum()) == 20
            ratio = rows.abs().amax(dim=0) / (norm.median() / 32**0.5)
            assert found.n_massive == int((ratio > 100).sum()) > 0
            assert found.massive[0][0] == int(ratio.argmax())
            assert found.massive[0][1] == pytest.approx(float(ratio.max()), abs=0.1)
    assert not list(plain.folder.rglob("norms_*"))
    assert plain.verify() == []


def test_scattered_sinks_are_named_with_their_text_and_the_rule(plain: ActivationStore) -> None:
    expected = (
        f"20 of {plain.n_rows:,} rows have more than 10 times the median norm, at scattered tokens such as '#' (20)"
    )
    assert far_sentence(plain) == f"{expected}; set cache.drop_norm_above=10."
    assert far_sentence(plain) in store_lines(plain)


def test_first_positions_are_proposed_where_the_sinks_stand_first(paths: dict[str, Path], tmp_path: Path) -> None:
    family, prompts = ModelFamily.load(paths), [Prompt(id=str(i), prompt=f"{SINK}text {i}") for i in range(40)]
    store = cache_activations(family, prompts, out=tmp_path / "a", config=CONFIG)
    assert "among the first 2 positions" in far_sentence(store)  # <bos> is the first one
    assert "set cache.drop_first_positions=2." in far_sentence(store)
    store = cache_activations(family, prompts, out=tmp_path / "b", config=CONFIG.replace(drop_first_positions=2))
    assert far_sentence(store) == ""
    assert store.token_rule([SITE]) == {"drop_first_positions": 2, "norm_limits": ()}


def test_a_store_without_far_rows_says_nothing_and_keeps_its_scale(small_store: ActivationStore) -> None:
    assert far_sentence(small_store) == ""
    assert small_store.norms is not None
    assert small_store.norms.far.tokens == ()
    training = ~small_store.tokens.held_out
    for index, name in enumerate(small_store.models):
        assert small_store.norms.models[name]["resid_post.1"].ordinary == ()
        own = small_store.rows_of(name, 0, small_store.n_rows, SITE)[torch.from_numpy(training)].double()
        shards = [record.norm_sum["resid_post.1"] for record in small_store.shards_of(name)]
        assert sum(shards) == pytest.approx(float(own.norm(dim=1).sum()), rel=1e-12)
        found = float(small_store.scale(SITE)[index])
        assert found == np.float32(sum(shards) / int(training.sum()) / 32**0.5)


def test_far_rows_do_not_decide_the_scale(plain: ActivationStore) -> None:
    used = torch.from_numpy(~plain.tokens.held_out)
    for index, name in enumerate(plain.models):
        norm = plain.rows_of(name, 0, plain.n_rows, SITE).double().norm(dim=1)
        chosen = norm[used & (norm <= 10 * norm.median())]
        assert float(plain.scale(SITE)[index]) == pytest.approx(float(chosen.mean()) / 32**0.5, rel=1e-6)
        assert float(norm[used].mean()) > 5 * float(chosen.mean())


def test_the_rule_drops_a_position_in_all_models_and_keeps_the_bytes_of_the_shards(
    plain: ActivationStore, dropping: ActivationStore, h5_hashes: Callable[[ActivationStore], dict[str, str]]
) -> None:
    sinks = is_sink(plain)
    assert np.array_equal(dropping.dropped, sinks)
    assert sinks.sum() == 20
    before, after = h5_hashes(plain), h5_hashes(dropping)
    assert after.keys() - before.keys() == {"dropped.h5"}
    assert all(after[name] == digest for name, digest in before.items())
    assert dropping.verify() == []
    for split in ("train", "held_out", "all"):
        assert np.array_equal(dropping.in_split(split), plain.in_split(split) & ~sinks)
    served = sum(len(batch) for batch in dropping.batches(64, site=SITE, split="all"))
    assert served == plain.n_rows - 20
    for sample in range(plain.n_samples):
        kept, whole = dropping.sequence(sample).kept, plain.sequence(sample).kept
        rows = dropping.sequence(sample).rows
        assert sum(whole) - sum(kept) == int(sinks[rows.start : rows.stop].sum())
    rule = dropping.token_rule([SITE])
    assert dropping.norms is not None
    medians = [dropping.norms.models[name]["resid_post.1"].median for name in dropping.models]
    assert rule == {"drop_first_positions": 0, "norm_limits": tuple(10 * median for median in medians)}
    assert "20 of" in far_sentence(dropping)
    assert "are dropped" in far_sentence(dropping)


def test_a_store_that_gets_more_models_has_the_norms_of_one_made_at_once(
    paths: dict[str, Path], dropping: ActivationStore, tmp_path: Path
) -> None:
    config = CONFIG.replace(drop_norm_above=10)
    cache_activations(ModelFamily.load({"base": paths["base"]}), scattered(), out=tmp_path / "c", config=config)
    store = cache_activations(ModelFamily.load(paths), scattered(), out=tmp_path / "c", config=config)
    assert store.norms == dropping.norms
    assert np.array_equal(store.dropped, dropping.dropped)


def test_an_old_store_without_norms_opens(plain: ActivationStore, tmp_path: Path) -> None:
    shutil.copytree(plain.folder, tmp_path / "c")
    manifest = read_manifest(tmp_path / "c")
    del manifest["results"]["norms"]
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    store = ActivationStore.open(tmp_path / "c")
    assert store.norms is None
    assert store.far_norms([SITE]) is None
    assert far_sentence(store) == ""


def test_the_rule_by_norm_is_not_in_the_settings_unless_it_is_set(
    plain: ActivationStore, dropping: ActivationStore
) -> None:
    assert "drop_norm_above" not in plain.manifest["config"]
    assert dropping.manifest["config"]["drop_norm_above"] == 10


def test_the_rule_by_norm_needs_a_whole_store(paths: dict[str, Path], tmp_path: Path) -> None:
    config = CONFIG.replace(drop_norm_above=10)
    with pytest.raises(ConfigError, match=r"drop_norm_above.*drop_first_positions"):
        cache_activations(
            ModelFamily.load(paths), scattered(), out=tmp_path / "c", config=config, kept=StoreSubset(rows=100)
        )
    assert not (tmp_path / "c").exists()


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 300), width=st.integers(1, 40), seed=st.integers(0, 100), held_out=st.floats(0, 1))
def test_norms_of_chunks_are_those_of_all_rows(n: int, width: int, seed: int, held_out: float) -> None:
    rng = np.random.default_rng(seed)
    rows, training = rng.standard_normal((n, width)).astype("<f4"), rng.random(n) >= held_out
    found = ShardNorms.of({"s": rows}, "float32")
    expected = torch.linalg.vector_norm(torch.from_numpy(rows).double(), dim=1)
    assert np.array_equal(found.norms["s"], expected.numpy())
    assert np.array_equal(found.largest["s"], np.abs(rows).max(axis=0))
    sums, count = found.training_sums(training)
    # As earlier releases computed it: the norms of the training rows alone.
    own = torch.linalg.vector_norm(torch.from_numpy(rows[training]).double(), dim=1)
    assert (sums["s"], count) == (float(own.sum()), int(training.sum()))
