"""Both readers of a model stop at the deepest site and agree, and the choice changes no byte of a store."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest import forward_batches
from mechprobe.cache.stage import cache_activations
from mechprobe.errors import ModelError
from mechprobe.models.blocks import find_blocks
from mechprobe.models.family import ModelFamily
from mechprobe.models.residuals import residuals_bridge, residuals_plain
from mechprobe.types import Site

PROMPTS = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(40)]
CONFIG = CacheConfig(sites=("resid_post.0", "resid_post.1"), shard_rows=150, batch_tokens=128)


@pytest.mark.parametrize("family_of", ["llama_family", "neox_family"])
@pytest.mark.parametrize("kind", ["plain", "bridge"])
def test_blocks_run_once_up_to_the_deepest_site_and_no_further(
    request: pytest.FixtureRequest, family_of: str, kind: str
) -> None:
    model = ModelFamily.load({"base": request.getfixturevalue(family_of)["base"]})["base"]
    network = model.hf if kind == "plain" else model.bridge.original_model
    ran: list[int | str] = []
    for index, block in enumerate(find_blocks(network)):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    network.get_output_embeddings().register_forward_pre_hook(lambda *_: ran.append("unembed"))
    read = residuals_plain if kind == "plain" else residuals_bridge
    ids = torch.tensor([[1, 5, 6]])
    cases: list[tuple[list[int], list[int]]] = [([0], [0]), ([0, 1], [0, 1]), ([1], [0, 1])]
    if kind == "plain":  # at the last block the bridge does not stop before the unembedding
        cases.append(([0, 1, 2], [0, 1, 2]))
    for sites, expected in cases:
        ran.clear()
        found = read(model, ids, torch.ones_like(ids), [Site(site) for site in sites])
        assert ran == expected, "every block up to the deepest site runs once, for all sites together"
        assert list(found) == [Site(site) for site in sites]


@pytest.mark.parametrize("family_of", ["llama_family", "qwen3_family", "neox_family"])
def test_the_reader_changes_no_byte(
    request: pytest.FixtureRequest, family_of: str, tmp_path: Path, h5_hashes: Callable
) -> None:
    family = ModelFamily.load(request.getfixturevalue(family_of))
    stores = {
        reader: cache_activations(family, PROMPTS, out=tmp_path / reader, config=CONFIG.replace(reader=reader))
        for reader in ("auto", "plain", "bridge")
    }
    assert h5_hashes(stores["auto"]) == h5_hashes(stores["bridge"]) == h5_hashes(stores["plain"])
    forward = {reader: store.manifest["results"]["forward"]["rl"] for reader, store in stores.items()}
    assert forward["auto"] == forward["plain"]
    assert forward["auto"]["reader"] == ["plain"]
    assert forward["bridge"]["reader"] == ["bridge"]
    assert (len(forward["auto"]["proof"]), forward["bridge"]["proof"]) == (1, [])
    reopened = cache_activations(family, PROMPTS, out=tmp_path / "auto", config=CONFIG.replace(reader="bridge"))
    assert reopened.manifest == stores["auto"].manifest, "another reader does not make a finished store again"


def test_the_proof_is_the_hash_of_the_residuals_of_the_bridge(llama_family: dict[str, Path], tmp_path: Path) -> None:
    from mechprobe.cache.harvest.forward_batches import batches_of

    family = ModelFamily.load({"base": llama_family["base"]})
    store = cache_activations(family, PROMPTS, out=tmp_path / "c", config=CONFIG.replace(batch_tokens=700))
    batches = list(batches_of(store.stream, store.stream.shards[0], 700, 0))
    assert len(batches) <= forward_batches.N_COMPARED
    digest = hashlib.sha256()
    for batch in batches:
        resid = residuals_bridge(family["base"], batch.ids, batch.mask, [Site(0), Site(1)])
        for site in (Site(0), Site(1)):
            digest.update(resid[site][batch.mask.bool()].numpy().tobytes())
    assert store.manifest["results"]["forward"]["base"]["proof"] == [digest.hexdigest()]


def _off_by_a_bit(read: Callable) -> Callable:
    return lambda *arguments: {site: x * (1 + 2e-7) for site, x in read(*arguments).items()}


def test_where_the_bits_differ_auto_logs_a_warning_and_uses_the_bridge_and_plain_is_refused(
    llama_family: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    h5_hashes: Callable,
) -> None:
    family = ModelFamily.load({"base": llama_family["base"]})
    expected = cache_activations(family, PROMPTS, out=tmp_path / "b", config=CONFIG.replace(reader="bridge"))
    monkeypatch.setattr(forward_batches, "residuals_plain", _off_by_a_bit(residuals_plain))
    with caplog.at_level(logging.WARNING):
        store = cache_activations(family, PROMPTS, out=tmp_path / "a", config=CONFIG)
    assert [record.levelname for record in caplog.records if "TransformerBridge" in record.getMessage()] == ["WARNING"]
    assert h5_hashes(store) == h5_hashes(expected)
    assert store.manifest["results"]["forward"]["base"]["reader"] == ["bridge"]
    with pytest.raises(ModelError, match=r"base.*TransformerBridge"):
        cache_activations(family, PROMPTS, out=tmp_path / "p", config=CONFIG.replace(reader="plain"))


def test_a_model_that_the_bridge_does_not_support_is_read_by_plain_hooks_with_a_warning(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_arguments: object) -> dict:
        raise ModelError("Model base: TransformerBridge cannot adapt it (ValueError: no).")

    monkeypatch.setattr(forward_batches, "residuals_bridge", refuse)
    family = ModelFamily.load({"base": llama_family["base"]})
    with caplog.at_level(logging.WARNING):
        store = cache_activations(family, PROMPTS, out=tmp_path / "a", config=CONFIG)
    assert "cannot adapt it" in caplog.text
    forward = store.manifest["results"]["forward"]["base"]
    assert (forward["reader"], forward["proof"]) == (["plain"], [])
    with pytest.raises(ModelError, match="TransformerBridge"):
        cache_activations(family, PROMPTS, out=tmp_path / "b", config=CONFIG.replace(reader="bridge"))


def test_a_model_that_the_bridge_wraps_and_cannot_run_is_read_by_plain_hooks(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_off(*_arguments: object, **_options: object) -> dict:
        raise AttributeError("'GatedDeltaNet' object has no attribute 'causal_conv1d_fn'")

    monkeypatch.setattr("transformer_lens.model_bridge.TransformerBridge.run_with_cache", break_off)
    family = ModelFamily.load({"base": llama_family["base"]})
    cache_activations(family, PROMPTS, out=tmp_path / "a", config=CONFIG)
    assert "base: TransformerBridge cannot run its architecture (AttributeError: 'GatedDeltaNet'" in caplog.text
    with pytest.raises(ModelError, match="TransformerBridge cannot run its architecture"):
        cache_activations(family, PROMPTS, out=tmp_path / "b", config=CONFIG.replace(reader="bridge"))


def test_models_in_memory(llama_family: dict[str, Path], tmp_path: Path, h5_hashes: Callable) -> None:
    names = ("base", "rl")
    kept: dict[str, list[bool]] = {}
    stores = {}
    for choice in ("one", "all"):
        family = ModelFamily.load({name: llama_family[name] for name in names})
        config = CONFIG.replace(models_in_memory=choice)
        stores[choice] = cache_activations(family, PROMPTS, out=tmp_path / choice, config=config)
        kept[choice] = ["hf" in family[name].__dict__ for name in names]
    assert kept == {"one": [False, False], "all": [True, True]}
    assert h5_hashes(stores["one"]) == h5_hashes(stores["all"])


def test_weights_that_are_not_finite_are_told_once_and_no_reader_is_named(
    llama_family: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_family["base"])
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] = float("nan")
    folder = tmp_path / "model"
    shutil.copytree(llama_family["base"], folder)
    model.save_pretrained(folder)
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError, match="not finite"):
        cache_activations(ModelFamily.load({"base": folder}), PROMPTS, out=tmp_path / "c", config=CONFIG)
    assert not [record for record in caplog.records if "read" in record.getMessage()]
