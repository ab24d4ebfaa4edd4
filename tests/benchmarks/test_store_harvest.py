"""The benchmarks of store and harvest run, and their contestants do the same work."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import harvest, store, stream
from benchmarks.random_store import MODELS, build_store, raw_copies
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.types import Site


@pytest.fixture(scope="module")
def random_store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return build_store(tmp_path_factory.mktemp("random") / "cache", n_rows=1024, d_model=8)


def test_the_copies_hold_the_bytes_of_the_store(random_store: ActivationStore, tmp_path: Path) -> None:
    assert random_store.verify() == []
    mapped, _ = raw_copies(random_store, tmp_path)
    whole = store.concat_models(mapped, random_store, 100, 300)
    assert np.array_equal(whole, random_store.stored_bytes(100, 300))
    assert not np.array_equal(mapped["base"], mapped["rl"])


def test_both_loaders_serve_the_same_tokens(random_store: ActivationStore, tmp_path: Path) -> None:
    mapped, _ = raw_copies(random_store, tmp_path)
    dataset = store.PerTokenDataset(mapped, random_store.n_rows)
    token = torch.stack([part.float() for part in dataset[77]])
    assert torch.equal(token, random_store.rows(77, 78)[0])
    assert len(dataset) == random_store.n_rows
    found = store.measure_batches(random_store, mapped, 1, n_tokens=256, batch_size=64)
    assert set(found["tokens_per_s"]) == {"store", "per_token_dataloader"}


def test_training_from_memory_and_store_ends_with_the_same_weights(random_store: ActivationStore) -> None:
    shape = {"d_sae": 32, "k": 2, "batch_size": 64}
    found = store.measure_training(random_store, 1, shape=shape, pool_rows=512)
    assert found["steps_per_round"] == 8
    assert set(found["tokens_per_s"]) == {"store", "memory"}


def test_reads_of_all_sources_are_compared_byte_by_byte(
    random_store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = store.measure_reads(random_store, tmp_path, rounds=1)
    assert set(found["random_512"]["mb_per_s"]) == {"store", "memmap", "safetensors"}
    whole = random_store.stored_bytes
    monkeypatch.setattr(random_store, "stored_bytes", lambda start, stop: whole(start, stop) + 1)
    with pytest.raises(AssertionError, match="bytes differ"):
        store.measure_reads(random_store, tmp_path, rounds=1)


def test_the_bare_forward_stops_and_has_the_bits_of_the_model(llama_family: dict[str, Path]) -> None:
    bare = harvest.BareForward.load(llama_family["base"], Site(1), "eager", "cpu")
    ran: list[int] = []
    for index, block in enumerate(bare.model.model.layers):
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    resid = bare(ids, mask)
    assert ran == [0, 1]
    model = AutoModelForCausalLM.from_pretrained(llama_family["base"], attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        whole = model.eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[2]
    assert torch.equal(resid[mask.bool()], whole[mask.bool()])


def test_harvest_measures_every_way(llama_family: dict[str, Path], tmp_path: Path) -> None:
    prompts = harvest.lab_prompts(3, joined=2)
    assert [prompt.prompt.count("?") >= 2 for prompt in prompts] == [True] * 3
    found = harvest.measure(llama_family["base"], prompts, Site(1), tmp_path, rounds=1)
    assert found["bits_equal_bare_eager"] == {"plain": True, "bridge": True}
    assert set(found["ways"]) == {
        *("bare_eager", "bare_sdpa", "reader_plain", "reader_bridge", "collect_plain", "collect_bridge")
    }
    assert "wall_s" in found["ways"]["collect_bridge"]
    assert found["ways"]["bare_eager"]["share_of_bare"]["median"] == 1.0
    assert len(found["pipeline"]["wall_s"]["all"]) == 1


def test_store_main_writes_a_result(tmp_path: Path) -> None:
    out = tmp_path / "store.json"
    store.main(["--quick", "--out", str(out), "--scratch", str(tmp_path)])
    report = json.loads(out.read_text())
    assert set(report["results"]) == {"reads", "batches", "training", "stores"}
    assert [(goal["name"], goal["at_least"]) for goal in report["goals"]] == [
        ("sequential_8192, share of memmap", 0.95), ("random_512, share of memmap", 0.9)
    ]  # fmt: skip
    assert all(goal["met"] == (goal["found"] >= goal["at_least"]) for goal in report["goals"])
    assert report["results"]["stores"]["read"] == [4096, len(MODELS), 16]
    assert str(tmp_path) not in out.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store.json"]


@pytest.mark.slow
def test_training_while_models_run_is_compared_with_the_slower_of_the_two(tmp_path: Path) -> None:
    stream.main(["--quick", "--out", str(tmp_path / "stream.json")])
    (found,) = json.loads((tmp_path / "stream.json").read_text())["results"].values()
    rates = {name: rate["all"] for name, rate in found["tokens_per_s"].items()}
    for harvesting, training, bound in zip(rates["harvest"], rates["train"], rates["bound"], strict=True):
        assert min(harvesting, training) <= bound <= training, (
            "the bound is training alone, or harvesting with a first window"
        )
