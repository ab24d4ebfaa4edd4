"""Edits on a part of the sequence or a class of tokens, in force."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechprobe.errors import ConfigError
from mechprobe.interventions.hooks.attach import edited
from mechprobe.interventions.hooks.positions import PositionRule
from mechprobe.models.blocks import position_ids, recording
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate, left_pad
from mechprobe.models.residuals import residuals_plain
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


def with_rule(crosscoder: Crosscoder, **rule: object) -> Crosscoder:
    """The same dictionary, trained on a store that dropped some positions."""
    return Crosscoder.from_tensors(crosscoder.config.replace(**rule), crosscoder.tensors()).eval()


def norm_rule(family: ModelFamily, clean: dict[str, Tensor], share: float) -> dict[str, tuple[float, ...]]:
    """Limits that the largest norms of some residuals exceed."""
    return {"norm_limits": tuple(float(clean[name].norm(dim=-1).quantile(share)) for name in family.names)}


@pytest.mark.parametrize("edit", ["ablate", "transplant", "replace", "steer:2.0"])
def test_edits_leave_positions_alone_that_the_store_dropped(
    family: ModelFamily, crosscoder: Crosscoder, edit: str
) -> None:
    ids, mask = batch(family)
    donor = "rl" if edit == "transplant" else None
    clean = {model.name: residuals_plain(model, ids, mask, [SITE])[SITE] for model in family}

    def edited_residual(dictionary: Crosscoder, positions: str = "all") -> Tensor:
        with edited(
            family["base"], dictionary, SOME, edit, site=SITE, siblings=family, donor=donor, positions=positions
        ):
            return residual(family, ids, mask)

    everywhere = edited_residual(crosscoder)
    position = mask.cumsum(1) - 1
    limits = norm_rule(family, clean, 0.7)
    reads = family.names if edit == "transplant" else ("base",)
    far = torch.stack(
        [clean[name].norm(dim=-1) > limits["norm_limits"][family.names.index(name)] for name in reads]
    ).any(0)
    for rule, left in (({"drop_first_positions": 2}, position < 2), (limits, far)):
        dictionary = with_rule(crosscoder, **rule)
        found = edited_residual(dictionary)
        real = mask.bool()
        assert torch.equal(found[left & real], clean["base"][left & real])
        assert torch.equal(found[~left & real], everywhere[~left & real])
        assert bool((left & real).any())
        assert torch.equal(edited_residual(dictionary, "all:with_dropped")[real], everywhere[real])
    named = edited_residual(with_rule(crosscoder, drop_first_positions=3), "all:not_special")
    special = torch.isin(ids, torch.tensor(family.tokenizer.all_special_ids))
    assert torch.equal(named[special | (position < 3)], clean["base"][special | (position < 3)])


@pytest.mark.parametrize("rule", [{"drop_first_positions": 4}, {"norm_limits": (3.0, 3.0, 3.0)}])
def test_generation_counts_positions_across_calls_and_padding(
    family: ModelFamily, crosscoder: Crosscoder, rule: dict[str, object]
) -> None:
    """Batched with left padding equals one by one, also where a prompt is shorter than the dropped positions."""
    base, dictionary = family["base"], with_rule(crosscoder, **rule)
    with edited(base, dictionary, SOME, "transplant", site=SITE, siblings=family, donor="rl"):
        together = generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=6)
        single = [generate(base.hf, base.tokenizer, [prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    assert together == single


def test_the_first_positions_of_a_short_prompt_reach_into_the_response(
    family: ModelFamily, crosscoder: Crosscoder
) -> None:
    """<bos> and one token are two positions; with four dropped, the first two responses are left alone, the third is not."""
    base, seen = family["base"], list[Tensor]()
    ids = torch.tensor([family.tokenizer("x").input_ids])
    dictionary = with_rule(crosscoder, drop_first_positions=4)
    past = None
    with edited(base, dictionary, SOME, "ablate", site=SITE, siblings=family), torch.no_grad():
        for step in [ids, *(torch.tensor([[token]]) for token in (20, 21, 22))]:
            length = ids.shape[1] + len(seen)
            with recording(base.hf, [SITE], stop=False) as found:
                out = base.hf(
                    input_ids=step, attention_mask=torch.ones(1, length), past_key_values=past, use_cache=True
                )
            past = out.past_key_values
            seen.append(found[SITE])
    whole = torch.cat([ids, torch.tensor([[20, 21, 22]])], dim=1)
    clean = residuals_plain(base, whole, torch.ones_like(whole), [SITE])[SITE][0]
    after = torch.cat(seen, dim=1)[0]
    torch.testing.assert_close(after[:4], clean[:4], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after[4], clean[4], atol=1e-3)


@pytest.mark.parametrize(
    "text", ["all:with_dropped", "response:tokens=5,7:with_dropped", "prompt:not_special:with_dropped"]
)
def test_the_text_of_a_rule_with_dropped_positions(text: str) -> None:
    assert str(PositionRule.parse(text)) == text
    assert PositionRule.parse(text).with_dropped
    assert not PositionRule.parse(text.removesuffix(":with_dropped")).with_dropped
    with pytest.raises(ConfigError, match=":with_dropped"):
        PositionRule.parse("all:dropped")
