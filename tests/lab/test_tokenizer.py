"""The tokenizer behaves like that of any other model, so that no other module needs to know the lab."""

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from transformers import AutoTokenizer

from mechprobe.evals import skills
from mechprobe.evals.scorers.parse import scorer
from mechprobe.lab.tokenizer import VOCABULARY, build_tokenizer

TOKENIZER = build_tokenizer()


def test_the_vocabulary_has_64_different_tokens() -> None:
    assert len(VOCABULARY) == len(set(VOCABULARY)) == len(TOKENIZER) == 64


def test_a_prompt_gets_bos_and_a_response_does_not() -> None:
    ids = TOKENIZER("CALC 47+8?").input_ids
    assert TOKENIZER.convert_ids_to_tokens(ids) == ["<bos>", "CALC", "4", "7", "+", "8", "?"]
    response = TOKENIZER("THINK 7+8=15;4+0+1=5 ANS 55", add_special_tokens=False).input_ids
    assert TOKENIZER.convert_ids_to_tokens(response)[:3] == ["THINK", "7", "+"]
    assert TOKENIZER.eos_token_id not in response


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), skill=st.sampled_from(sorted(skills.SKILLS)))
def test_text_survives_the_round_trip(seed: int, skill: str) -> None:
    renderings = ["compact", "compact-own-markers"]
    if skill == "calculation":
        renderings.append("compact-off-policy")
    for rendering in renderings:
        item = skills.generate(skill, n=1, seed=seed, rendering=rendering)[0]
        for text in (item.prompt, item.trace):
            ids = TOKENIZER(text, add_special_tokens=False).input_ids
            decoded = TOKENIZER.decode(ids, skip_special_tokens=True)
            assert TOKENIZER.unk_token_id not in ids
            assert decoded.replace(" ", "") == text.replace(" ", "")
            assert TOKENIZER(decoded, add_special_tokens=False).input_ids == ids
        assert scorer("final:ANS").score(decoded, item.answer) == "right"


def test_a_prompt_and_a_response_have_the_same_tokens_separately_and_joined() -> None:
    item = skills.generate("fact_retrieval", n=1, seed=2)[0]
    apart = TOKENIZER(item.prompt).input_ids + TOKENIZER(item.trace, add_special_tokens=False).input_ids
    assert TOKENIZER(item.prompt + item.trace).input_ids == apart


def test_auto_tokenizer_loads_the_same_tokenizer(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert again("SIM 7ntnt?").input_ids == TOKENIZER("SIM 7ntnt?").input_ids
    assert (again.pad_token, again.bos_token, again.eos_token) == ("<pad>", "<bos>", "<eos>")
    padded = again(["CALC 47+8?", "SIM 7ntnt?"], padding=True)
    assert padded.attention_mask[0][0] == 0
    assert padded.input_ids[0][0] == again.pad_token_id


@pytest.mark.parametrize("text", ["é", "CALC 4*5?"])
def test_unknown_characters_become_unk(text: str) -> None:
    assert TOKENIZER.unk_token_id in TOKENIZER(text).input_ids
