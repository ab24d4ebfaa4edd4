"""Cached activations equal those of a plain transformers forward pass, bit for bit."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.forward_batches import forward_batches, padded
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.data.prompts import Prompt
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily

SITES = ("resid_post.0", "resid_post.2")
PROMPTS = [
    Prompt(id=f"p{index}", prompt="Compute 12+7=?"[: 3 + index % 11], response="x" * (index % 7) or None)
    for index in range(40)
]


def plain_forward(path: Path, layer: int, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The block's output in a full forward of an untouched transformers model with eager attention."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
    blocks = model.gpt_neox.layers if hasattr(model, "gpt_neox") else model.model.layers
    seen = []
    blocks[layer].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return seen[0]


@pytest.fixture(scope="module", params=["llama_family", "qwen3_family", "neox_family"])
def cached(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Mapping[str, Path], ActivationStore, CacheConfig]:
    paths = request.getfixturevalue(request.param)
    config = CacheConfig(sites=SITES, shard_rows=100, batch_tokens=64, held_out_frac=0.2)
    out = tmp_path_factory.mktemp("equality") / "cache"
    return paths, cache_activations(ModelFamily.load(paths), PROMPTS, out=out, config=config), config


def test_rows_equal_a_plain_forward_of_the_same_batch_bit_for_bit(cached) -> None:
    paths, store, config = cached
    assert len(store.stream.shards) > 2
    for name in store.models:
        n_compared = 0
        for shard in store.stream.shards:
            samples = [store.sequence(index) for index in shard.sequences]
            for batch in forward_batches([len(sample.ids) for sample in samples], config.batch_tokens):
                ids, mask = padded([samples[index].ids for index in batch], pad_id=0)
                for site in store.sites:
                    expected = plain_forward(paths[name], site.layer, ids, mask)
                    for number, index in enumerate(batch):
                        sample = samples[index]
                        kept = np.flatnonzero(sample.kept)
                        found = store.rows_of(name, sample.rows.start, sample.rows.stop, site)
                        assert torch.equal(found, expected[number, kept]), (name, site, sample.id)
                        n_compared += len(kept)
        assert n_compared == store.n_rows * len(SITES)


def test_padding_changes_less_than_1e_5(cached) -> None:
    paths, store, _ = cached
    for sample in (store.sequence(index) for index in range(0, store.n_samples, 9)):
        ids = torch.tensor([sample.ids])
        alone = plain_forward(paths["rl"], 2, ids, torch.ones_like(ids))[0, np.flatnonzero(sample.kept)]
        stored = store.rows_of("rl", sample.rows.start, sample.rows.stop, "resid_post.2")
        assert (alone - stored).abs().max() < 1e-5


def test_ids_equal_those_of_the_tokenizer(cached) -> None:
    paths, store, _ = cached
    tokenizer = AutoTokenizer.from_pretrained(paths["base"])
    by_id = {prompt.id: prompt for prompt in PROMPTS}
    for index in range(store.n_samples):
        sample = store.sequence(index)
        prompt = by_id[sample.prompt_id]
        response = tokenizer(prompt.response, add_special_tokens=False).input_ids if prompt.response else []
        assert list(sample.ids) == tokenizer(prompt.prompt).input_ids + response
        assert sample.ids[0] == tokenizer.bos_token_id
        assert sample.kept == (False, *([True] * (len(sample.ids) - 1)))
        assert sum(sample.response) == len(response)
        rows = slice(sample.rows.start, sample.rows.stop)
        assert store.tokens.token_id[rows].tolist() == list(sample.ids[1:])
        assert store.tokens.position[rows].tolist() == list(range(1, len(sample.ids)))
        assert store.tokens.is_response[rows].tolist() == list(sample.response[1:])


def test_models_differ(cached) -> None:
    _, store, _ = cached
    rows = store.rows(0, store.n_rows, "resid_post.2")
    assert rows.shape == (store.n_rows, 3, 32)
    assert (rows[:, 0] - rows[:, 1]).abs().max() > 1e-3
    assert (rows[:, 1] - rows[:, 2]).abs().max() > 1e-3


def test_overflow_names_model_and_sequence_and_leaves_no_shard(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.cache.harvest import forward_batches

    real = forward_batches.residuals_plain
    for name in ("residuals_plain", "residuals_bridge"):
        monkeypatch.setattr(forward_batches, name, lambda *a: {site: x * 1e6 for site, x in real(*a).items()})
    with pytest.raises(StoreError, match=r"base, resid_post\.0, sequence '0': .*float16"):
        cache_activations(
            ModelFamily.load(llama_family),
            ["abc"],
            out=tmp_path / "c",
            config=CacheConfig(sites=(SITES[0],), dtype="float16"),
        )
    assert not list((tmp_path / "c").rglob("*.h5.partial"))
    assert not list((tmp_path / "c").rglob("shard_*"))
    assert not (tmp_path / "c" / "manifest.json").exists()
