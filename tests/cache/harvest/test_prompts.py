"""Prompts and responses: which models respond, and which input is refused before anything is written."""

from pathlib import Path

import pytest
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.errors import ConfigError, InputError, ModelError, SiteError
from mechprobe.models.family import ModelFamily

SITE = "resid_post.1"


@pytest.mark.parametrize(
    ("prompts", "sites", "error", "facts"),
    [
        (["x" * 70], [SITE], InputError, "'0'.*71.*64"),
        (["abc"], ["resid_post.3"], SiteError, r"resid_post\.3"),
        (["abc"], ["mlp_out.1"], SiteError, r"mlp_out\.1"),
        (["abc"], [], ConfigError, "site"),
        ([], [SITE], InputError, "empty"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    llama_family: dict[str, Path], tmp_path: Path, prompts: list, sites: list, error: type, facts: str
) -> None:
    with pytest.raises(error, match=facts) as caught:
        cache_activations(ModelFamily.load(llama_family), prompts, sites, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_responders_that_are_unknown_or_malformed(llama_family: dict[str, Path], tmp_path: Path) -> None:
    family = ModelFamily.load(llama_family)
    with pytest.raises(ModelError, match="rlhf"):
        cache_activations(family, ["a"], [SITE], tmp_path / "c", CacheConfig(responses=("rlhf@0.0",)))
    with pytest.raises(ConfigError, match="model@temperature"):
        CacheConfig(responses=("rl",))
    assert not (tmp_path / "c").exists()


def test_every_model_runs_on_the_responses(llama_family: dict[str, Path], tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match="58"):
        cache_activations(ModelFamily.load(llama_family), ["x" * 60], out=tmp_path / "d", config=config)
