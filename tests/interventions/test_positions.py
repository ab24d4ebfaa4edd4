"""Edits on a part of the sequence or a class of tokens, in force."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechprobe.errors import ConfigError
from mechprobe.interventions.hooks.attach import edited
from mechprobe.models.blocks import position_ids, recording
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate, left_pad
from mechprobe.types import Site
from sae_training import Crosscoder

SITE = Site(1)
SOME = [0, 3, 7, 11, 20, 33, 40]
PROMPTS = ["Ab1+2=", "x", "longer prompt here?"]


def batch(family: ModelFamily, prompts: list[str] = PROMPTS) -> tuple[Tensor, Tensor]:
    return left_pad([family.tokenizer(text).input_ids for text in prompts], family.tokenizer.pad_token_id, "cpu")


def residual(family: ModelFamily, ids: Tensor, mask: Tensor) -> Tensor:
    """The residual that leaves the site, with the edits in force."""
    with recording(family["base"].hf, [SITE], stop=False) as found, torch.no_grad():
        family["base"].hf(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask))
    return found[SITE]


@pytest.mark.parametrize("edit", ["ablate", "transplant", "replace"])
def test_only_the_named_positions_change(family: ModelFamily, crosscoder: Crosscoder, edit: str) -> None:
    """Other positions are bit-identical to the clean model; named positions equal an edit of all positions."""
    ids, mask = batch(family)
    donor = "rl" if edit == "transplant" else None
    clean = residual(family, ids, mask)
    with edited(family["base"], crosscoder, SOME, edit, site=SITE, siblings=family, donor=donor):
        everywhere = residual(family, ids, mask)
    special = torch.isin(ids, torch.tensor(family.tokenizer.all_special_ids))
    last = torch.zeros_like(special)
    last[:, -1] = True
    kinds = {
        "all:not_special": ~special,
        "all:special": special & mask.bool(),
        "last_prompt_token": last,
        "prompt:not_special": ~special,
        "response": torch.zeros_like(special),
    }
    for positions, where in kinds.items():
        with edited(
            family["base"], crosscoder, SOME, edit, site=SITE, siblings=family, donor=donor, positions=positions
        ):
            found = residual(family, ids, mask)
        assert torch.equal(found[where], everywhere[where]), positions
        assert torch.equal(found[~where], clean[~where]), positions
        assert bool(where.any()) == (not torch.equal(found, clean)), positions


@pytest.mark.parametrize("positions", ["all:not_special", "last_prompt_token", "prompt", "response", "all:tokens=6,7"])
def test_batched_equals_one_by_one_on_every_part(family: ModelFamily, crosscoder: Crosscoder, positions: str) -> None:
    base = family["base"]
    with edited(base, crosscoder, SOME, "transplant", site=SITE, siblings=family, donor="rl", positions=positions):
        together = generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=6)
        single = [generate(base.hf, base.tokenizer, [prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    assert together == single


def test_parts_differ_and_siblings_do_not_run_after_the_prompt(family: ModelFamily, crosscoder: Crosscoder) -> None:
    """A transplant into the prompt needs its sibling only in the first call."""
    base, rl = family["base"], family["rl"].hf
    calls: list[int] = []
    handle = rl.register_forward_pre_hook(lambda _m, _a, kw: calls.append(kw["input_ids"].shape[1]), with_kwargs=True)
    texts = {}
    try:
        for positions in ("all", "prompt", "response", "last_prompt_token"):
            calls.clear()
            with edited(
                base, crosscoder, range(48), "transplant", site=SITE, siblings=family, donor="rl", positions=positions
            ):
                ids = base.tokenizer(PROMPTS[2], return_tensors="pt").input_ids
                texts[positions] = base.hf.generate(
                    ids, max_new_tokens=5, do_sample=False, eos_token_id=None, output_logits=True,
                    return_dict_in_generate=True, pad_token_id=0,
                ).logits[-1]  # fmt: skip
            n = ids.shape[1]
            assert calls == ([n] if positions in ("prompt", "last_prompt_token") else [n, 1, 1, 1, 1]), positions
    finally:
        handle.remove()
    found = list(texts.values())
    assert not any(torch.allclose(a, b, atol=1e-4) for i, a in enumerate(found) for b in found[:i])


def test_special_tokens_of_a_bare_model_have_to_be_named(
    family: ModelFamily, crosscoder: Crosscoder, llama_family: dict[str, Path]
) -> None:
    bare = family["base"].hf
    with (
        pytest.raises(ConfigError, match="special_ids"),
        edited(bare, crosscoder, SOME, site=SITE, host="base", positions="all:not_special"),
    ):
        pass
    ids, mask = batch(family)
    with edited(family["base"], crosscoder, SOME, site=SITE, positions="all:not_special"):
        expected = residual(family, ids, mask)
    special = family.tokenizer.all_special_ids
    with edited(bare, crosscoder, SOME, site=SITE, host="base", positions="all:not_special", special_ids=special):
        assert torch.equal(residual(family, ids, mask), expected)
    with (
        pytest.raises(ConfigError, match="'answers'"),
        edited(bare, crosscoder, SOME, site=SITE, host="base", positions="answers"),
    ):
        pass
