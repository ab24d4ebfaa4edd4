"""Both ways through a model: they stop where they should, they agree, and the choice changes no byte of a store."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest import readers
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.errors import ModelError
from mechprobe.files import sha256_file
from mechprobe.models.family import ModelFamily
from mechprobe.models.residuals import find_blocks, residuals_bridge, residuals_plain
from mechprobe.types import Site

PROMPTS = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(40)]
CONFIG = CacheConfig(sites=("resid_post.0", "resid_post.1"), shard_rows=150, batch_tokens=128)


def shards(store: ActivationStore) -> dict[str, str]:
    return {str(path.relative_to(store.folder)): sha256_file(path) for path in sorted(store.folder.rglob("*.h5"))}


@pytest.mark.parametrize("family_of", ["llama_family", "neox_family"])
@pytest.mark.parametrize("way", ["plain", "bridge"])
def test_blocks_run_once_up_to_the_deepest_site_and_no_further(
    request: pytest.FixtureRequest, family_of: str, way: str
) -> None:
    model = ModelFamily.load({"base": request.getfixturevalue(family_of)["base"]})["base"]
    network = model.hf if way == "plain" else model.bridge.original_model
    ran: list[int | str] = []
    for index, block in enumerate(find_blocks(network)):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    network.get_output_embeddings().register_forward_pre_hook(lambda *_: ran.append("unembed"))
    read = residuals_plain if way == "plain" else residuals_bridge
    ids = torch.tensor([[1, 5, 6]])
    cases: list[tuple[list[int], list[int]]] = [([0], [0]), ([0, 1], [0, 1]), ([1], [0, 1])]
    if way == "plain":  # at the last block the bridge has nothing to stop at, and unembeds
        cases.append(([0, 1, 2], [0, 1, 2]))
    for sites, expected in cases:
        ran.clear()
        found = read(model, ids, torch.ones_like(ids), [Site(site) for site in sites])
        assert ran == expected, "every block up to the deepest site once, for all sites together"
        assert list(found) == [Site(site) for site in sites]


@pytest.mark.parametrize("family_of", ["llama_family", "qwen3_family", "neox_family"])
def test_the_reader_changes_no_byte(request: pytest.FixtureRequest, family_of: str, tmp_path: Path) -> None:
    family = ModelFamily.load(request.getfixturevalue(family_of))
    stores = {
        reader: cache_activations(family, PROMPTS, out=tmp_path / reader, config=CONFIG.replace(reader=reader))
        for reader in ("auto", "plain", "bridge")
    }
    assert shards(stores["auto"]) == shards(stores["bridge"]) == shards(stores["plain"])
    forward = {reader: store.manifest["results"]["forward"]["rl"] for reader, store in stores.items()}
    assert forward["auto"] == forward["plain"]
    assert forward["auto"]["reader"] == ["plain"]
    assert forward["bridge"]["reader"] == ["bridge"]
    assert (len(forward["auto"]["proof"]), forward["bridge"]["proof"]) == (1, [])
    reopened = cache_activations(family, PROMPTS, out=tmp_path / "auto", config=CONFIG.replace(reader="bridge"))
    assert reopened.manifest == stores["auto"].manifest, "a finished store is not made again for another reader"


def test_the_proof_is_the_hash_of_what_the_bridge_gives(llama_family: dict[str, Path], tmp_path: Path) -> None:
    from mechprobe.cache.harvest.forward_batches import batches_of

    family = ModelFamily.load({"base": llama_family["base"]})
    store = cache_activations(family, PROMPTS, out=tmp_path / "c", config=CONFIG.replace(batch_tokens=700))
    batches = list(batches_of(store.stream, store.stream.shards[0], 700, 0))
    assert len(batches) <= readers.N_COMPARED
    digest = hashlib.sha256()
    for batch in batches:
        resid = residuals_bridge(family["base"], batch.ids, batch.mask, [Site(0), Site(1)])
        for site in (Site(0), Site(1)):
            digest.update(resid[site][batch.mask.bool()].numpy().tobytes())
    assert store.manifest["results"]["forward"]["base"]["proof"] == [digest.hexdigest()]


def _off_by_a_bit(read: Callable) -> Callable:
    return lambda *arguments: {site: x * (1 + 2e-7) for site, x in read(*arguments).items()}


def test_where_the_bits_differ_auto_takes_the_bridge_and_says_so_and_plain_is_refused(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    family = ModelFamily.load({"base": llama_family["base"]})
    expected = cache_activations(family, PROMPTS, out=tmp_path / "b", config=CONFIG.replace(reader="bridge"))
    monkeypatch.setattr(readers, "residuals_plain", _off_by_a_bit(residuals_plain))
    with caplog.at_level(logging.WARNING):
        store = cache_activations(family, PROMPTS, out=tmp_path / "a", config=CONFIG)
    assert caplog.text.count("is read through the bridge") == 1
    assert shards(store) == shards(expected)
    assert store.manifest["results"]["forward"]["base"]["reader"] == ["bridge"]
    with pytest.raises(ModelError, match="differs from TransformerBridge by up to"):
        cache_activations(family, PROMPTS, out=tmp_path / "p", config=CONFIG.replace(reader="plain"))


def test_a_model_that_the_bridge_cannot_take_is_read_plainly_and_this_is_said(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_arguments: object) -> dict:
        raise ModelError("Model base: TransformerBridge cannot adapt it (ValueError: no).")

    monkeypatch.setattr(readers, "residuals_bridge", refuse)
    family = ModelFamily.load({"base": llama_family["base"]})
    with caplog.at_level(logging.WARNING):
        store = cache_activations(family, PROMPTS, out=tmp_path / "a", config=CONFIG)
    assert "nothing could be compared with" in caplog.text
    forward = store.manifest["results"]["forward"]["base"]
    assert (forward["reader"], forward["proof"]) == (["plain"], [])
    with pytest.raises(ModelError, match="TransformerBridge"):
        cache_activations(family, PROMPTS, out=tmp_path / "b", config=CONFIG.replace(reader="bridge"))


def test_models_in_memory(llama_family: dict[str, Path], tmp_path: Path) -> None:
    names = ("base", "rl")
    kept: dict[str, list[bool]] = {}
    stores = {}
    for choice in ("one", "all"):
        family = ModelFamily.load({name: llama_family[name] for name in names})
        config = CONFIG.replace(models_in_memory=choice)
        stores[choice] = cache_activations(family, PROMPTS, out=tmp_path / choice, config=config)
        kept[choice] = ["hf" in family[name].__dict__ for name in names]
    assert kept == {"one": [False, False], "all": [True, True]}
    assert shards(stores["one"]) == shards(stores["all"])
