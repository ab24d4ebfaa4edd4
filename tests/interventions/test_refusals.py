"""Calls and edits that cannot work are refused with a reason; sound ones that look similar are not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ArtifactError, ConfigError, ModelError, SelectionError
from mechprobe.interventions.edits.edit import Edit
from mechprobe.interventions.edits.edit_functions import build_rewrite, check_ids
from mechprobe.interventions.hooks.attach import edited
from mechprobe.interventions.hooks.rewriting import rewriting
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig

SITE = Site(1)
SOME = [0, 3, 7, 11, 20, 33, 40]
NAMES = ("base", "sft", "rl")
SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, "do_sample": False}


@dataclass(frozen=True)
class Chosen:
    features: tuple[int, ...]
    site: str
    crosscoder: str


def prompt(family: ModelFamily, text: str = "abababab") -> Tensor:
    return torch.tensor([family.tokenizer(text).input_ids])


def transplant(family: ModelFamily, crosscoder: Crosscoder) -> Any:
    return edited(family["base"], crosscoder, SOME, "transplant", site=SITE, donor="rl", siblings=family)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"num_beams": 2, "do_sample": True}, "beam search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
        ({"cache_implementation": "static"}, "static KV cache"),
    ],
)
def test_generation_that_siblings_cannot_follow(
    family: ModelFamily, crosscoder: Crosscoder, asked: dict[str, object], message: str
) -> None:
    ids = prompt(family)
    with transplant(family, crosscoder) as model:
        with pytest.raises(ModelError, match=message):
            model.generate(ids, **(SETTINGS | asked))
        fresh = model.generate(ids, use_cache=False, **SETTINGS)
        assert torch.equal(model.generate(ids, **SETTINGS), fresh)  # the block stays usable


def test_an_edit_of_one_model_follows_beams_and_drafts(family: ModelFamily, crosscoder: Crosscoder) -> None:
    """The edit at a position depends only on the residual at that position."""
    ids = prompt(family)
    with edited(family["base"], crosscoder, SOME, "ablate", site=SITE) as model:
        greedy = model.generate(ids, **SETTINGS)
        assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=2, **SETTINGS), greedy)
        beams = model.generate(ids, num_beams=3, **SETTINGS)
        assert torch.equal(model.generate(ids, num_beams=3, use_cache=False, **SETTINGS), beams)


@pytest.mark.parametrize("positions", ["prompt", "response"])
def test_draft_tokens_are_not_mistaken_for_the_prompt(
    family: ModelFamily, crosscoder: Crosscoder, positions: str
) -> None:
    with (
        edited(family["base"], crosscoder, SOME, "ablate", site=SITE, positions=positions) as model,
        pytest.raises(ModelError, match="greedy or sampled decoding"),
    ):
        model.generate(prompt(family), prompt_lookup_num_tokens=2, **SETTINGS)
    with (
        edited(family["base"], crosscoder, SOME, "ablate", site=SITE, positions=positions) as model,
        pytest.raises(ModelError, match="KV cache"),
    ):
        model.generate(prompt(family), use_cache=False, **SETTINGS)


def test_conversations_side_by_side_keep_their_own_sibling_caches(family: ModelFamily, crosscoder: Crosscoder) -> None:
    """Two caches of the host grow in turns, and each has its own sibling caches."""
    texts = ("abc12", "xyz98")
    with transplant(family, crosscoder) as model, torch.no_grad():
        expected = [model(prompt(family, text)).logits[:, -1] for text in texts]
        caches: dict[str, Any] = {}
        for text in texts:
            caches[text] = model(prompt(family, text)[:, :3], use_cache=True).past_key_values
        for text, whole in zip(texts, expected, strict=True):
            found = model(prompt(family, text)[:, 3:], past_key_values=caches[text]).logits[:, -1]
            assert torch.allclose(found, whole, atol=1e-5)


def test_a_cache_from_outside_is_refused(family: ModelFamily, crosscoder: Crosscoder) -> None:
    ids, base = prompt(family), family["base"].hf
    with torch.no_grad():
        past = base(ids[:, :4], use_cache=True).past_key_values
    with transplant(family, crosscoder) as model:
        with pytest.raises(ModelError, match="outside the edit"), torch.no_grad():
            model(ids[:, 4:], past_key_values=past)
        with pytest.raises(ModelError, match="tuple"), torch.no_grad():
            model(ids[:, 4:], past_key_values=((ids, ids),))
        with pytest.raises(ModelError, match="input_ids"), torch.no_grad():
            model(inputs_embeds=base.get_input_embeddings()(ids))
        with pytest.raises(ModelError, match="submodule"), torch.no_grad():
            model.model(ids)


def test_arguments_may_be_given_by_position(family: ModelFamily, crosscoder: Crosscoder) -> None:
    ids = prompt(family)
    with transplant(family, crosscoder) as model, torch.no_grad():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert torch.equal(model(ids, torch.ones_like(ids)).logits, expected)
        begun = model(ids[:, :5], use_cache=True)
        went_on = model(ids[:, 5:], None, None, begun.past_key_values, return_dict=False)[0]
    assert torch.allclose(went_on[:, -1], expected[:, -1], atol=1e-5)


def test_models_without_a_kv_cache(crosscoder: Crosscoder, family: ModelFamily) -> None:
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=110, hidden_size=32, num_hidden_layers=3, state_size=4, intermediate_size=64)
    ).eval()
    with (
        pytest.raises(ModelError, match=r"MambaForCausalLM \(the edited model\)"),
        edited(mamba, crosscoder, SOME, "transplant", site=SITE, host="base", donor="rl", siblings=family),
    ):
        pass
    with (
        pytest.raises(ModelError, match=r"MambaForCausalLM \(rl\)"),
        edited(family["base"], crosscoder, SOME, "transplant", site=SITE, donor="rl", siblings={"rl": mamba}),
    ):
        pass
    with (
        pytest.raises(ModelError, match="MambaForCausalLM"),
        edited(mamba, crosscoder, SOME, "ablate", site=SITE, host="base", positions="response"),
    ):
        pass
    ids = torch.tensor([[5, 6, 7]])
    with edited(mamba, crosscoder, SOME, "ablate", site=SITE, host="base") as model, torch.no_grad():
        assert model(ids).logits.shape == (1, 3, 110)  # an edit of one model at all positions needs no cache


def test_the_edited_model_cannot_be_its_own_sibling(family: ModelFamily, crosscoder: Crosscoder) -> None:
    siblings = {"rl": family["base"], "sft": family["sft"]}
    with (
        pytest.raises(ModelError, match="Sibling rl"),
        edited(family["base"], crosscoder, SOME, "transplant", site=SITE, donor="rl", siblings=siblings),
    ):
        pass


@pytest.mark.parametrize("feature", [1.5, "1", None])
def test_a_feature_is_an_integer(feature: object) -> None:
    with pytest.raises(SelectionError, match=repr(feature)):
        check_ids([0, feature], 48)
    assert check_ids([*np.array([1, 2]), *torch.tensor([3, 4]), 5], 48) == [1, 2, 3, 4, 5]


def test_crosscoders_of_another_width_or_site(family: ModelFamily, crosscoder: Crosscoder) -> None:
    narrow = Crosscoder(CrosscoderConfig(n_models=3, d_model=16, d_sae=48, k=6, model_names=NAMES))
    with pytest.raises(ModelError, match=r"16.*base.*32"), edited(family["base"], narrow, SOME, site=SITE):
        pass
    selection = Chosen((1, 2), "resid_post.1", crosscoder.fingerprint)
    with (
        pytest.raises(SelectionError, match=r"resid_post\.1.*resid_post\.2"),
        edited(family["base"], crosscoder, selection, site="resid_post.2"),
    ):
        pass
    with edited(family["base"], crosscoder, selection, site="resid_post.1"):
        pass
    other = Crosscoder(crosscoder.config)
    with (
        pytest.raises(ArtifactError, match=f"{selection.crosscoder[:12]}.*{other.fingerprint[:12]}"),
        edited(family["base"], other, selection),
    ):
        pass
    changed = Crosscoder(crosscoder.config)
    changed.load_state_dict(crosscoder.state_dict())
    with edited(family["base"], changed, selection):
        pass
    with torch.no_grad():
        changed.decoder.mul_(2.0)
    with pytest.raises(ArtifactError, match=selection.crosscoder[:12]), edited(family["base"], changed, selection):
        pass


def test_swap_among_models_of_two_widths() -> None:
    uneven = Crosscoder(CrosscoderConfig(n_models=3, d_model=(8, 8, 12), d_sae=24, k=3, model_names=NAMES))
    generator = torch.Generator().manual_seed(0)
    x = {name: torch.randn(2, 3, width, generator=generator) for name, width in zip(NAMES, (8, 8, 12), strict=True)}
    with pytest.raises(ConfigError, match=r"base.*8.*rl.*12"):
        build_rewrite(uneven, [1, 2], Edit("ablate"), host="base", donor=None, readout=Readout("swap"))
    near = Readout("swap", ("base", "sft"))
    rewrite = build_rewrite(uneven, [1, 2], Edit("ablate"), host="base", donor=None, readout=near)
    joint = build_rewrite(uneven, [1, 2], Edit("ablate"), host="rl", donor=None, readout=Readout("joint"))
    assert rewrite(x).shape == (2, 3, 8)
    acts = uneven.encode(torch.cat([x[name].reshape(-1, x[name].shape[-1]) for name in NAMES], dim=1))
    acts[:, [k for k in range(24) if k not in (1, 2)]] = 0
    assert torch.allclose(joint(x), x["rl"] - (acts @ uneven.own_decoder("rl")).reshape(2, 3, 12), atol=1e-5)
    with pytest.raises(ModelError, match=r"base|rl"):
        build_rewrite(uneven, [1], Edit("transplant"), host="base", donor="rl", readout=Readout("joint"))


def test_a_feature_with_a_zero_direction_cannot_steer(family: ModelFamily, crosscoder: Crosscoder) -> None:
    silent = Crosscoder(crosscoder.config)
    silent.load_state_dict(crosscoder.state_dict())
    with torch.no_grad():
        silent.decoder[7] = 0.0
    with (
        pytest.raises(SelectionError, match=r"Feature 7 .*base"),
        edited(family["base"], silent, SOME, "steer:2", site=SITE),
    ):
        pass


@pytest.mark.parametrize("generating", [True, False])
def test_an_edit_that_gives_non_finite_values_is_named(
    family: ModelFamily, crosscoder: Crosscoder, generating: bool
) -> None:
    loud = Crosscoder(crosscoder.config)
    loud.load_state_dict(crosscoder.state_dict())
    with torch.no_grad():
        loud.decoder.mul_(100.0)
    ids = prompt(family)
    message = r"'clamp:3e\+38' of features 0, 3, 7, 11, 20 and 2 more at resid_post\.1 in base .*not finite.*row 0.*position 0"
    with edited(family["base"], loud, SOME, "clamp:3e38", site=SITE) as model, torch.no_grad():
        with pytest.raises(ModelError, match=message):
            model.generate(ids, **SETTINGS) if generating else model(ids)
        with pytest.raises(ModelError, match="not finite"):  # also in a call of a submodule
            model.model(ids)
    with torch.no_grad():
        assert torch.isfinite(family["base"].hf(ids).logits).all()


def test_nan_logits_name_the_edit_and_the_model(family: ModelFamily) -> None:
    """One row is NaN before the edit, so the message also names the model as a possible cause."""
    base = family["base"].hf
    embedded = base.get_input_embeddings()(prompt(family, "ab").repeat(2, 1)).detach().clone()
    embedded[1] = float("nan")

    def plus_one(x: Mapping[str, Tensor]) -> Tensor:
        return x["base"] + 1.0

    with rewriting(base, SITE, plus_one, host_name="base"), torch.no_grad():
        with pytest.raises(ModelError, match="logits are not finite"):
            base(inputs_embeds=embedded)
        assert torch.isfinite(base(inputs_embeds=embedded[:1]).logits).all()


def test_overflow_behind_the_edit_is_detected(neox_family: dict[str, Any]) -> None:
    """The residual is finite, but its mean in the next layer norm is not."""
    base = ModelFamily.load({"base": neox_family["base"]})["base"].hf
    with (
        rewriting(base, SITE, lambda x: torch.full_like(x["base"], 3e38), host_name="base"),
        pytest.raises(ModelError, match=r"logits are not finite.*base's residual at resid_post\.1"),
        torch.no_grad(),
    ):
        base(torch.tensor([[1, 5, 6]]))
