"""The forward call of a model in two parts gives the logits of the whole call, whatever a model does behind its unembedding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mechprobe.errors import ModelError
from mechprobe.models.head import ModelHead
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site
from tests.builders import build_tokenizer

_SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "llama": ({}, True),
    "gemma2": ({"final_logit_softcapping": 2.0}, False),
    "cohere": ({"logit_scale": 0.0625}, False),
    "granite": ({"logits_scaling": 8.0, "embedding_multiplier": 12.0}, False),
    "opt": ({"word_embed_proj_dim": 16, "ffn_dim": 64}, True),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 64}, True),
}


def saved(kind: str, folder: Path) -> LanguageModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        name: value
        for name, value in _SIZES.items()
        if not (kind == "gpt2" and name in ("hidden_size", "intermediate_size"))
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**settings, **KINDS[kind][0]}))
    with torch.no_grad():
        for parameter in model.parameters():  # logits of several units, so that a cap bends them
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return LanguageModel(kind, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_call(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path / kind)
    head = ModelHead(model)
    assert head.direct is KINDS[kind][1]
    ids = torch.tensor([[1, 20, 30, 40, 50], [1, 60, 70, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = model.hf(input_ids=ids, attention_mask=mask).logits
    hidden, resid = head.hidden(ids, mask, [Site(0), Site(1)])
    assert resid[Site(1)].shape == (2, 5, 32)
    kept = mask.bool()
    found = torch.cat([head.logits(hidden[kept][start : start + 3]) for start in (0, 3, 6)])
    torch.testing.assert_close(found, expected[kept], atol=1e-5, rtol=1e-5)
    if not head.direct:
        alone = model.hf.get_output_embeddings()(hidden[kept])
        assert (
            float((alone - expected[kept]).abs().max()) > 0.1
        )  # the test would not see a head that leaves out the rest
    assert not model.hf.get_output_embeddings()._forward_pre_hooks


def test_a_model_whose_unembedding_is_bypassed_is_refused(tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "llama")
    inner = model.hf.forward

    def forward(**inputs: Any) -> Any:
        found = inner(**inputs)
        found.logits = found.logits * torch.arange(1, 1 + found.logits.shape[1])[None, :, None]
        return found

    model.hf.forward = forward
    with pytest.raises(ModelError, match="no function of the input"):
        ModelHead(model)
