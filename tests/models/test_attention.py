"""Kinds of attention: query chunks have the bits of whole eager attention, and fused kernels are measured against it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mechprobe.errors import ModelError
from mechprobe.models import attention
from mechprobe.models.attention import CHUNKED, at_most, differences, settle
from mechprobe.models.blocks import forward_inputs
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import Site
from tests.zoo import tiny_model


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "gpt2", "gpt_oss", "opt"])
def test_query_chunks_have_the_bits_of_whole_attention(kind: str) -> None:
    assert differences(tiny_model(kind), ["eager"]) == {"eager": 0.0}


def test_the_probe_takes_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = tiny_model("llama"), []
    whole = attention.eager_mask
    monkeypatch.setattr(attention, "eager_mask", lambda **options: made.append(options["q_length"]) or whole(**options))
    differences(model, ["eager"])
    n_layers = model.config.num_hidden_layers
    assert made == [16] * 4 * n_layers  # whole attention makes its mask elsewhere


def test_models_are_loaded_with_query_chunks(llama_family: dict[str, Path]) -> None:
    assert LanguageModel("base", llama_family["base"]).hf.config._attn_implementation == CHUNKED


def test_gradients_and_responses_in_chunks_are_those_of_whole_attention(llama_family: dict[str, Path]) -> None:
    model = LanguageModel("base", llama_family["base"])
    ids = torch.randint(4, 99, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0

    def found() -> list[torch.Tensor]:
        embedded = model.hf.get_input_embeddings()(ids).requires_grad_()
        logits = model.hf(inputs_embeds=embedded, **forward_inputs(model.hf, mask)).logits
        logits[mask.bool()].log_softmax(-1)[:, 7].sum().backward()
        resid = residuals_plain(model, ids, mask, [Site(1)])[Site(1)][mask.bool()]
        assert embedded.grad is not None
        return [embedded.grad[mask.bool()], logits.detach()[mask.bool()], resid]

    def responses() -> list[str]:
        prompts = [row.tolist() for row in ids]
        return [each.text for each in generate(model, model.tokenizer, prompts, max_new_tokens=6)]

    whole, answers = found(), responses()
    with at_most(1):
        parts = found()
        assert responses() == answers
    assert torch.equal(whole[1], parts[1])
    assert torch.equal(whole[2], parts[2])
    torch.testing.assert_close(whole[0], parts[0], rtol=1e-4, atol=1e-6)


def test_sdpa_is_measured_and_accepted(llama_family: dict[str, Path]) -> None:
    model = LanguageModel("base", llama_family["base"], attention="sdpa")
    assert model.hf.config._attn_implementation == "sdpa"
    assert 0 < differences(model.hf, ["sdpa"])["sdpa"] < 1e-5
    assert model.hf.config._attn_implementation == "sdpa"


def test_sdpa_that_moves_residuals_too_far_is_refused(
    llama_family: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.LIMITS, torch.float32, 1e-9)
    with pytest.raises(
        ModelError, match=r"Model base: sdpa attention moves residuals by up to .*, more than 1e-09; set"
    ):
        _ = LanguageModel("base", llama_family["base"], attention="sdpa").hf


def test_an_architecture_without_other_attention_is_said_or_refused(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("gptj")
    settle(model, "eager", "base")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="gptj models have no other attention than their own"):
        settle(model, "sdpa", "base")


def test_attention_is_part_of_the_identity(llama_family: dict[str, Path]) -> None:
    assert ModelFamily.load(llama_family).identity == {}
    assert ModelFamily.load(llama_family, attention="sdpa").identity == {"attention": "sdpa"}


@pytest.mark.parametrize(
    ("attention", "dtype", "words"),
    [("flash", "bfloat16", "flash attention needs a CUDA device"), ("fast", "float32", "attention 'fast' is unknown")],
)
def test_attention_that_cannot_be_had_is_refused(
    llama_family: dict[str, Path], attention: str, dtype: str, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        LanguageModel("base", llama_family["base"], attention=attention, dtype=dtype)


_PEAK = """
import resource, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from mechprobe.models.attention import at_most, settle
torch.set_num_threads(1)
config = LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=8, max_position_embeddings=4096
)
model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
settle(model, "eager", "base")
def peak(n):
    with torch.no_grad(), at_most(1 << 18):
        model.model(input_ids=torch.ones(1, n, dtype=torch.int64), use_cache=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(peak(512), peak(2048))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_the_square_of_the_length() -> None:
    """Four times the tokens; whole scores of the longer sequence take 128 MiB, and their softmax as much again."""
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # freed tensors go back to the system
    said = subprocess.run(
        [sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True, env=settings
    ).stdout
    short, long = map(float, said.split())
    assert long - short < 60, said
