"""The store: layout on disk, rows, batches, splits, numbers, and what is refused."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.plan import plan_cache
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.dtypes import from_stored, to_stored
from mechprobe.errors import ArtifactError, ConfigError, InputError, ModelError, SiteError, StoreError
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
    with pytest.raises(StoreError, match="do not exist"):
        small_store.rows(0, small_store.n_rows + 1, SITE)


def test_models_can_be_chosen_and_ordered(small_store: ActivationStore) -> None:
    turned = ActivationStore.open(small_store.folder, models=("rl", "base"))
    rows, whole = turned.rows(0, 9, SITE), small_store.rows(0, 9, SITE)
    assert torch.equal(rows[:, 0], whole[:, 2])
    assert torch.equal(rows[:, 1], whole[:, 0])
    with pytest.raises(StoreError, match="holds base, rl, sft, not 'rll'"):
        ActivationStore.open(small_store.folder, models=("rll",))


def test_sites_must_be_named_and_exist(small_store: ActivationStore) -> None:
    with pytest.raises(SiteError, match="several sites"):
        small_store.rows(0, 1)
    with pytest.raises(SiteError, match=r"not resid_post\.2"):
        small_store.rows(0, 1, "resid_post.2")


@given(
    batch_size=st.integers(1, 300),
    block_rows=st.integers(1, 120),
    pool_rows=st.integers(1, 700),
    seed=st.integers(0, 3),
    split=st.sampled_from(["train", "held_out", "all"]),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_epoch_serves_every_row_exactly_once(
    small_store: ActivationStore, batch_size: int, block_rows: int, pool_rows: int, seed: int, split: str
) -> None:
    options = {"site": SITE, "split": split, "block_rows": block_rows, "pool_rows": pool_rows}
    batches = small_store.batches(batch_size, seed, epochs=2, **options)
    served = list(batches)
    mask = torch.from_numpy(small_store.in_split(split))
    expected = small_store.rows(0, small_store.n_rows, SITE)[mask]
    assert all(len(batch) == batch_size for batch in served[:-1])
    rows = torch.cat(served)
    assert len(rows) == 2 * len(expected) == 2 * batches.n_rows
    assert batches.distinct_rows == len(expected)

    def in_order(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1).numpy()
        return torch.from_numpy(flat[np.lexsort(flat.T[::-1])])

    for epoch in range(2):
        assert torch.equal(in_order(rows[epoch * len(expected) :][: len(expected)]), in_order(expected))


@given(cut=st.integers(0, 40), batch_size=st.integers(1, 90), pool_rows=st.integers(1, 400))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_saved_position_goes_on_with_the_same_batches(
    small_store: ActivationStore, cut: int, batch_size: int, pool_rows: int
) -> None:
    options = {"site": SITE, "epochs": None, "block_rows": 32, "pool_rows": pool_rows}
    first = small_store.batches(batch_size, 1, **options)
    stream = iter(first)
    for _ in range(cut):
        next(stream)
    state = json.loads(json.dumps(first.state_dict()))
    second = small_store.batches(batch_size, 1, **options)
    second.load_state_dict(state)
    for _, (one, other) in zip(range(4), zip(stream, second, strict=False), strict=False):
        assert torch.equal(one, other)


def test_positions_of_other_settings_are_refused(small_store: ActivationStore) -> None:
    state = small_store.batches(10, 1, site=SITE).state_dict()
    with pytest.raises(StoreError, match="seed = 1, these batches have 2"):
        small_store.batches(10, 2, site=SITE).load_state_dict(state)
    with pytest.raises(StoreError, match="models"):
        ActivationStore.open(small_store.folder, models=["rl"]).batches(10, 1, site=SITE).load_state_dict(state)


def test_seeds_and_epochs_shuffle_differently(small_store: ActivationStore) -> None:
    def order(seed: int) -> torch.Tensor:
        return torch.cat(list(small_store.batches(100, seed, site=SITE, epochs=2)))

    one = order(1)
    half = len(one) // 2
    assert torch.equal(one, order(1))
    assert not torch.equal(one, order(2))
    assert not torch.equal(one[:half], one[half:])


def test_every_refill_brings_new_rows(llama_family: dict[str, Path], tmp_path: Path) -> None:
    """The published buffer bug: after the first fill, refills took nothing, so training saw the same rows again."""
    prompts = [f"{letter} and the rest" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    store = cache_activations(ModelFamily.load({"base": llama_family["base"]}), prompts, [SITE], tmp_path / "c")
    batches = store.batches(50, 0, site=SITE, epochs=1, pool_rows=100, block_rows=10)
    seen: set[bytes] = set()
    for batch in batches:
        new = {row.numpy().tobytes() for row in batch}
        assert len(new) == len(batch)
        assert not new & seen
        seen |= new
    assert len(seen) == int(store.in_split("train").sum())


def test_a_held_out_prompt_is_never_trained_on(small_store: ActivationStore) -> None:
    held_out = {small_store.sequence(sample).prompt_id for sample in small_store.held_out_samples()}
    training = {
        small_store.sequence(sample).prompt_id
        for sample in np.unique(small_store.tokens.sample[small_store.in_split("train")]).tolist()
    }
    assert len(held_out) == 12
    assert not held_out & training


SPECIAL = [0.0, -0.0, 1.0, -1.5, 3.0e38, -3.0e38, 1e-40, 2.0**-133]


def test_bfloat16_round_trip_is_exact() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    stored = every.view(torch.uint16).numpy()
    back = from_stored(stored.copy(), "bfloat16")
    assert torch.equal(back.view(torch.int16), every.view(torch.int16))  # NaN, ±Inf and −0 among them
    finite = every[torch.isfinite(every)].reshape(1, -1)
    assert torch.equal(
        from_stored(to_stored(finite.float(), "bfloat16"), "bfloat16").view(torch.int16), finite.view(torch.int16)
    )


def test_bfloat16_is_uint16_on_disk_and_said_so(llama_family: dict[str, Path], tmp_path: Path) -> None:
    config = CacheConfig(sites=(SITE,), dtype="bfloat16", held_out_frac=0)
    family = ModelFamily.load({"base": llama_family["base"], "rl": llama_family["rl"]})
    store = cache_activations(family, ["a prompt", "and one more"], out=tmp_path / "b", config=config)
    whole = cache_activations(
        family, ["a prompt", "and one more"], out=tmp_path / "f", config=config.replace(dtype="float32")
    )
    with h5py.File(tmp_path / "b" / "rl" / "shard_00000.h5") as file:
        assert file[SITE].dtype == np.uint16
        assert file[SITE].attrs["dtype"] == "bfloat16"
    assert torch.equal(store.rows(0, store.n_rows), whole.rows(0, whole.n_rows).bfloat16().float())
    batch = next(iter(store.batches(5)))
    assert batch.dtype == torch.float32
    with pytest.raises(StoreError, match="no held_out rows"):
        store.batches(5, split="held_out")


def test_float16_overflow_is_an_error_that_proposes_bfloat16() -> None:
    with pytest.raises(StoreError, match=r"7e\+04 does not fit float16.*bfloat16"):
        to_stored(torch.tensor([[1.0, 70000.0]]), "float16")
    with pytest.raises(StoreError, match="not finite"):
        to_stored(torch.tensor([[1.0, float("nan")]]), "bfloat16")
    assert to_stored(torch.tensor([[1.0, 65504.0]]), "float16").dtype == np.float16


def test_overflow_names_model_and_sequence_and_leaves_no_shard(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.cache.harvest import readers

    real = readers.residuals_plain
    for name in ("residuals_plain", "residuals_bridge"):
        monkeypatch.setattr(readers, name, lambda *a: {site: x * 1e6 for site, x in real(*a).items()})
    with pytest.raises(StoreError, match=r"Model base, resid_post\.1, sequence '0': .* float16"):
        cache_activations(
            ModelFamily.load(llama_family),
            ["abc"],
            out=tmp_path / "c",
            config=CacheConfig(sites=(SITE,), dtype="float16"),
        )
    assert not list((tmp_path / "c").rglob("*.h5.partial"))
    assert not list((tmp_path / "c").rglob("shard_*"))
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_models_of_different_widths_stand_side_by_side(tmp_path: Path) -> None:
    from tests.builders import build_family

    narrow = build_family(tmp_path / "n", names=("base",))["base"]
    wide = build_family(tmp_path / "w", names=("base",), d_model=48)["base"]
    family = ModelFamily.load({"narrow": narrow, "wide": wide})
    store = cache_activations(family, ["some text"], [SITE], tmp_path / "cache")
    assert store.rows(0, 4).shape == (4, 80)
    assert torch.equal(store.rows(0, 4)[:, 32:], store.rows_of("wide", 0, 4))
    assert next(iter(store.batches(3))).shape == (3, 80)
    with pytest.raises(StoreError, match="different widths"):
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


@pytest.mark.parametrize(
    ("prompts", "sites", "error", "words"),
    [
        (["x" * 70], [SITE], InputError, "'0' has 71 tokens and the limit is 64"),
        (["abc"], ["resid_post.3"], SiteError, r"resid_post\.3 does not exist"),
        (["abc"], ["mlp_out.1"], SiteError, "is not a site"),
        (["abc"], [], ConfigError, "No site"),
        ([], [SITE], InputError, "empty"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    llama_family: dict[str, Path], tmp_path: Path, prompts: list, sites: list, error: type, words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        cache_activations(ModelFamily.load(llama_family), prompts, sites, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_an_unknown_responder_and_a_bad_one(llama_family: dict[str, Path], tmp_path: Path) -> None:
    family = ModelFamily.load(llama_family)
    with pytest.raises(ModelError, match="no model 'rlhf'"):
        cache_activations(family, ["a"], [SITE], tmp_path / "c", CacheConfig(responses=("rlhf@0.0",)))
    with pytest.raises(ConfigError, match="model@temperature"):
        CacheConfig(responses=("rl",))
    assert not (tmp_path / "c").exists()


def test_preflight_says_what_it_takes_and_refuses_what_does_not_fit(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, config = ModelFamily.load(llama_family), CacheConfig(sites=(SITE,), dtype="float16")
    plan = plan_cache(family, ["abcd", "ef"], tmp_path / "c", config)
    assert (plan.n_rows, plan.most_rows) == (6, 6)
    assert plan.n_bytes() == int(1.02 * 6 * 3 * 32 * 2)
    assert "6 rows (2 prompts) × 3 models × 1 sites (resid_post.1)" in str(plan)
    answered = plan_cache(
        family, ["abcd", "ef"], tmp_path / "c", config.replace(responses=("rl@0.0",), max_new_tokens=5)
    )
    assert (answered.n_rows, answered.most_rows) == (6, 16)
    assert not (tmp_path / "c").exists()

    from mechprobe.cache.harvest import plan as module

    monkeypatch.setattr(module, "free_bytes", lambda path: 100)
    with pytest.raises(StoreError, match=r"needs 1\.18 KB and 100 B are free"):
        cache_activations(family, ["abcd", "ef"], out=tmp_path / "c", config=config)
    assert not (tmp_path / "c").exists()


def test_models_that_respond_are_read_by_all(llama_family: dict[str, Path], tmp_path: Path) -> None:
    config = CacheConfig(
        sites=(SITE,), responses=("base@1.0", "rl@0.0"), max_new_tokens=6, held_out_frac=0, generation_batch=4
    )
    store = cache_activations(
        ModelFamily.load(llama_family), ["1+1=", "hello", "abc"], out=tmp_path / "c", config=config
    )
    samples = [store.sequence(index) for index in range(store.n_samples)]
    assert {sample.id for sample in samples} == {f"{i}#{source}" for i in range(3) for source in config.responses}
    assert all(0 < sum(sample.response) <= 6 for sample in samples)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_family["rl"])
    model = AutoModelForCausalLM.from_pretrained(llama_family["rl"])
    for sample in samples:
        if sample.source == "rl@0.0":
            n_prompt = len(sample.ids) - sum(sample.response)
            ids = torch.tensor([sample.ids[:n_prompt]])
            expected = model.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)[0, n_prompt:].tolist()
            end = expected.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in expected else 6
            assert list(sample.ids[n_prompt:]) == expected[:end]
    with pytest.raises(InputError, match="limit is 58"):
        cache_activations(ModelFamily.load(llama_family), ["x" * 60], out=tmp_path / "d", config=config)


def test_adding_a_model_keeps_the_others_shards(llama_family: dict[str, Path], tmp_path: Path) -> None:
    config = CacheConfig(sites=(SITE,), held_out_frac=0)
    two = ModelFamily.load({name: llama_family[name] for name in ("base", "sft")})
    cache_activations(two, ["a prompt", "another"], out=tmp_path / "c", config=config)
    shard = tmp_path / "c" / "base" / "shard_00000.h5"
    written = shard.stat().st_mtime_ns
    store = cache_activations(
        ModelFamily.load(llama_family), ["a prompt", "another"], out=tmp_path / "c", config=config
    )
    assert store.models == ("base", "sft", "rl")
    assert shard.stat().st_mtime_ns == written
    fresh = cache_activations(
        ModelFamily.load(llama_family), ["a prompt", "another"], out=tmp_path / "d", config=config
    )
    assert torch.equal(store.rows(0, store.n_rows), fresh.rows(0, fresh.n_rows))
    assert store.verify() == []


def test_a_folder_that_is_no_store(small_store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        ActivationStore.open(tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtifactError, match="not a stage folder"):
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
    with pytest.raises(StoreError, match="does not belong to this store"):
        ActivationStore.open(copy).rows(0, 1, SITE)
