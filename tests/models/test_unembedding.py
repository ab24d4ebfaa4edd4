"""Direction to logits, compared with the derivative of each model's final modules and with plain loops."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
)

from mechprobe.errors import ModelError
from mechprobe.models.load import LanguageModel
from mechprobe.models.unembedding import unembedding
from tests.builders import build_tokenizer

D, VOCAB = 32, 120
SHARED = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {**SHARED, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, tuple[PretrainedConfig, str]] = {
    "llama": (LlamaConfig(**WIDE, num_key_value_heads=2, tie_word_embeddings=False), "model.norm"),
    "llama tied": (LlamaConfig(**WIDE, num_key_value_heads=2, tie_word_embeddings=True), "model.norm"),
    "neox": (GPTNeoXConfig(**WIDE, tie_word_embeddings=False), "gpt_neox.final_layer_norm"),
    "gpt2": (GPT2Config(**SHARED, n_embd=D, n_layer=2, n_head=4), "transformer.ln_f"),
    "gemma": (Gemma2Config(**WIDE, num_key_value_heads=2, head_dim=8, final_logit_softcapping=None), "model.norm"),
}
CENTERED = {"neox", "gpt2"}


def saved(folder: Path, config: PretrainedConfig) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.3)  # gains differ from 1, shifts from 0
    model.tie_weights()
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return LanguageModel("base", folder)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, LanguageModel]:
    config, _ = CONFIGS[request.param]
    return request.param, saved(tmp_path_factory.mktemp("model"), config)


def final_norm(name: str, model: LanguageModel) -> nn.Module:
    return model.hf.get_submodule(CONFIGS[name][1])


def test_logits_are_the_derivative_of_the_head(case: tuple[str, LanguageModel]) -> None:
    name, model = case
    norm, head = final_norm(name, model), model.hf.get_output_embeddings()
    generator = torch.Generator().manual_seed(1)
    resid = torch.randn(D, generator=generator) * 3
    seen = resid - resid.mean() if name in CENTERED else resid
    direction = torch.randn(D, generator=generator)
    direction = direction - seen * (direction @ seen) / (seen @ seen)  # orthogonal, so that the spread does not change
    _, derivative = torch.func.jvp(lambda x: head(norm(x[None, None]))[0, 0], (resid,), (direction,))
    spread = seen.square().mean().sqrt()
    expected = (derivative - derivative.mean()) * spread
    found = unembedding(model).logits(direction[None])[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_logits_equal_loops_over_the_stored_weights(case: tuple[str, LanguageModel]) -> None:
    name, model = case
    stored = dict(model.hf.state_dict())
    gain = stored[f"{CONFIGS[name][1]}.weight"].double() + (1.0 if name == "gemma" else 0.0)
    weight = model.hf.get_output_embeddings().weight.double()
    directions = torch.randn(3, D, generator=torch.Generator().manual_seed(2))

    def naive(direction: Tensor, *, norm: bool) -> Tensor:
        mean = sum(direction.tolist()) / D if norm and name in CENTERED else 0.0
        logits = [
            sum(
                float(weight[token, i]) * (float(gain[i]) if norm else 1.0) * (float(direction[i]) - mean)
                for i in range(D)
            )
            for token in range(VOCAB)
        ]
        return torch.tensor([value - sum(logits) / VOCAB for value in logits])

    head = unembedding(model)
    assert head.centered == (name in CENTERED)
    torch.testing.assert_close(head.gain.double(), gain, rtol=1e-5, atol=1e-6)
    for norm in (True, False):
        expected = torch.stack([naive(direction, norm=norm) for direction in directions])
        torch.testing.assert_close(head.logits(directions, norm=norm), expected, rtol=1e-4, atol=1e-4)


def test_tied_embeddings_are_the_unembedding(tmp_path: Path) -> None:
    model = saved(tmp_path / "tied", CONFIGS["llama tied"][0])
    assert torch.equal(unembedding(model).weight, model.hf.get_input_embeddings().weight)


def test_half_precision_weights_are_read_in_float32(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", CONFIGS["llama"][0])
    half = LanguageModel("base", tmp_path / "whole", dtype="bfloat16")
    directions = torch.randn(2, D, generator=torch.Generator().manual_seed(3))
    found = unembedding(half).logits(directions)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, unembedding(whole).logits(directions), rtol=0.05, atol=0.1)


def test_a_model_without_a_final_norm(tmp_path: Path) -> None:
    config = OPTConfig(
        **SHARED, hidden_size=D, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, do_layer_norm_before=False,
        word_embed_proj_dim=D,
    )  # fmt: skip
    head = unembedding(saved(tmp_path / "opt", config))
    assert torch.equal(head.gain, torch.ones(D))
    assert not head.centered


def test_a_projection_before_the_head_is_an_error_with_both_widths(tmp_path: Path) -> None:
    config = OPTConfig(
        **SHARED, hidden_size=D, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16
    )
    with pytest.raises(ModelError, match=r"width 16.*32"):
        unembedding(saved(tmp_path / "opt", config))


class Squashing(nn.Module):
    """A module that is not a norm."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def test_an_unknown_norm_is_an_error_that_names_its_type(tmp_path: Path) -> None:
    model = saved(tmp_path / "llama", CONFIGS["llama"][0])
    inner: Any = model.hf
    inner.model.norm = Squashing()
    with pytest.raises(ModelError, match="Squashing"):
        unembedding(model)
