"""Edits at several sites at once: their inputs, their order, and how far siblings run."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ConfigError
from mechprobe.interventions.edits.edit import Edit
from mechprobe.interventions.edits.edit_functions import build_rewrite
from mechprobe.interventions.hooks.attach import SiteEdit, edited, edited_at
from mechprobe.interventions.hooks.rewriting import SiteRewrite, rewriting_sites
from mechprobe.models.blocks import find_blocks, position_ids, recording
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate, left_pad
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig

SHALLOW, DEEP = Site(0), Site(2)
SOME, OTHERS = [0, 3, 7, 11], [5, 20, 33, 40]
PROMPTS = ["Ab1+2=", "x", "longer prompt here?"]


@pytest.fixture(scope="module")
def second() -> Crosscoder:
    """Another dictionary, for another site."""
    config = CrosscoderConfig(n_models=3, d_model=32, d_sae=48, k=6, model_names=("base", "sft", "rl"), seed=9)
    crosscoder = Crosscoder(config)
    crosscoder.set_scale([1.2, 0.9, 0.7])
    return crosscoder.eval()


def batch(family: ModelFamily, prompts: list[str] = PROMPTS) -> tuple[Tensor, Tensor]:
    return left_pad([family.tokenizer(text).input_ids for text in prompts], family.tokenizer.pad_token_id, "cpu")


def logits(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits


def two(crosscoder: Crosscoder, second: Crosscoder) -> list[SiteEdit]:
    return [SiteEdit(crosscoder, SOME, "ablate", SHALLOW), SiteEdit(second, OTHERS, "transplant", DEEP, donor="rl")]


def test_a_deeper_site_sees_the_edited_host_and_clean_siblings(family: ModelFamily, crosscoder: Crosscoder) -> None:
    ids, mask = batch(family)
    seen: dict[str, Tensor] = {}

    def spy(x: Mapping[str, Tensor]) -> Tensor:
        seen.update(x)
        return x["base"]

    ablate = build_rewrite(crosscoder, SOME, Edit("ablate"), host="base", donor=None, readout=Readout("swap"))
    edits = [SiteRewrite(SHALLOW, ablate), SiteRewrite(DEEP, spy, ("rl", "sft"))]
    siblings = {name: family[name].hf for name in ("rl", "sft")}
    with rewriting_sites(family["base"].hf, edits, host_name="base", siblings=siblings):
        logits(family["base"].hf, ids, mask)
    for name in siblings:
        own = residuals_plain(family[name], ids, mask, [DEEP])[DEEP]  # without a KV cache, so the last bit may differ
        assert torch.allclose(seen[name], own, atol=1e-6)
    with (
        edited(family["base"], crosscoder, SOME, "ablate", site=SHALLOW),
        recording(family["base"].hf, [DEEP], stop=False) as found,
    ):
        logits(family["base"].hf, ids, mask)
    assert torch.equal(seen["base"], found[DEEP])
    clean = residuals_plain(family["base"], ids, mask, [DEEP])[DEEP]
    assert not torch.allclose(seen["base"], clean, atol=1e-3)


@pytest.mark.parametrize("order", [1, -1])
def test_two_sites_equal_two_blocks_one_in_the_other(
    family: ModelFamily, crosscoder: Crosscoder, second: Crosscoder, order: int
) -> None:
    """The order of the list does not matter, because the model reaches the sites in its own order."""
    base, (ids, mask) = family["base"], batch(family)
    with (
        edited(base, crosscoder, SOME, "ablate", site=SHALLOW),
        edited(base, second, OTHERS, "transplant", site=DEEP, donor="rl", siblings=family),
    ):
        expected = logits(base.hf, ids, mask)
    with edited_at(base, two(crosscoder, second)[::order], siblings=family):
        assert torch.equal(logits(base.hf, ids, mask), expected)
    clean = logits(base.hf, ids, mask)
    for one in two(crosscoder, second):
        with edited_at(base, [one], siblings=family):
            alone = logits(base.hf, ids, mask)
        assert not torch.allclose(alone, expected, atol=1e-4)
        assert not torch.allclose(alone, clean, atol=1e-4)


def test_edits_of_one_site_act_in_the_order_given(family: ModelFamily, crosscoder: Crosscoder) -> None:
    base, (ids, mask) = family["base"], batch(family)
    clean = residuals_plain(base, ids, mask, [DEEP])[DEEP]
    readout = Readout("swap")
    first = build_rewrite(crosscoder, SOME, Edit("ablate"), host="base", donor=None, readout=readout)
    then = build_rewrite(crosscoder, OTHERS, Edit("clamp", 2.0), host="base", donor=None, readout=readout)
    found = {}
    for order in (1, -1):
        edits = [SiteEdit(crosscoder, SOME, "ablate", DEEP), SiteEdit(crosscoder, OTHERS, "clamp:2.0", DEEP)][::order]
        with edited_at(base, edits), recording(base.hf, [DEEP], stop=False) as read:
            logits(base.hf, ids, mask)
        found[order] = read[DEEP]
    assert torch.allclose(found[1], then({"base": first({"base": clean})}), atol=1e-6)
    assert torch.allclose(found[-1], first({"base": then({"base": clean})}), atol=1e-6)
    assert not torch.allclose(found[1], found[-1], atol=1e-5)


def test_generation_with_two_sites(family: ModelFamily, crosscoder: Crosscoder, second: Crosscoder) -> None:
    """Batched and one by one, with and without a KV cache."""
    base = family["base"]
    ids = torch.tensor([base.tokenizer(PROMPTS[2]).input_ids])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with edited_at(base, two(crosscoder, second), siblings=family):
        texts = generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=8)
        assert [generate(base.hf, base.tokenizer, [p], max_new_tokens=8)[0] for p in PROMPTS] == texts
        cached = base.hf.generate(ids, use_cache=True, **settings)
        assert torch.equal(base.hf.generate(ids, use_cache=False, **settings), cached)


def test_no_edits_at_all_change_nothing(family: ModelFamily) -> None:
    ids, mask = batch(family)
    before = logits(family["base"].hf, ids, mask)
    with edited_at(family["base"], []) as model:
        assert torch.equal(logits(model, ids, mask), before)


def test_siblings_run_once_a_call_and_no_further_than_they_are_read(
    family: ModelFamily, crosscoder: Crosscoder, second: Crosscoder
) -> None:
    """Only the shallow edit reads sft and two edits read rl; neither runs beyond its deepest site."""
    ran: list[tuple[str, int]] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, place=(name, layer): ran.append(place))
        for name in ("sft", "rl")
        for layer, block in enumerate(find_blocks(family[name].hf))
    ]
    middle = Site(1)
    edits = [
        SiteEdit(crosscoder, SOME, "ablate", SHALLOW, readout=Readout("joint")),
        SiteEdit(second, OTHERS, "transplant", middle, donor="rl", readout=Readout("swap")),
        SiteEdit(second, OTHERS, "steer:3", DEEP),
    ]
    try:
        with edited_at(family["base"], edits, siblings=family) as model:
            logits(model, *batch(family))
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(ran) == [("rl", 0), ("rl", 1), ("sft", 0)]


def test_a_host_without_a_name_is_refused(family: ModelFamily, crosscoder: Crosscoder) -> None:
    with pytest.raises(ConfigError, match="host=NAME"), edited_at(family["base"].hf, [SiteEdit(crosscoder, SOME)]):
        pass
