"""Chat templates: the tokens of a conversation, the boundary between prompt and response, and every error."""

import pytest

from mechprobe.data.chat import Chat, choose_template
from mechprobe.data.lengths import join
from mechprobe.data.prompts import Message, Prompt
from mechprobe.data.tokens import encode_prompt, encode_response, special_token_ids
from mechprobe.errors import ConfigError, InputError
from tests.builders import build_tokenizer

MARKS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer_of(template: str | None):
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    tokenizer.chat_template = template
    return tokenizer


def test_the_prompt_is_the_template_and_the_response_keeps_its_own_tokens() -> None:
    tokenizer = tokenizer_of(TEMPLATE)
    prompt = Prompt("a", "2+2?", "It is 4")
    ids = encode_prompt(tokenizer, prompt, chat=Chat(TEMPLATE, system_prompt="Be brief"))
    text = "<bos><|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(tokenizer.convert_ids_to_tokens(list(ids))) == text
    assert ids.count(tokenizer.bos_token_id) == 1
    sequence = join(prompt, ids, encode_response(tokenizer, "It is 4"), max_length=200)
    assert sequence is not None
    answer = [i for i, is_response in zip(sequence.ids, sequence.is_response, strict=True) if is_response]
    assert "".join(tokenizer.convert_ids_to_tokens(answer)) == "It is 4"
    assert sequence.is_response.tolist() == [False] * len(ids) + [True] * 7


def test_a_conversation_keeps_its_own_system_message() -> None:
    tokenizer, chat = tokenizer_of(TEMPLATE), Chat(TEMPLATE, system_prompt="Be brief")
    turns = (Message("system", "S"), Message("user", "U"), Message("assistant", "A"), Message("user", "V"))
    text = "".join(tokenizer.convert_ids_to_tokens(list(chat.encode(tokenizer, Prompt("a", "V", messages=turns)))))
    assert "Be brief" not in text
    assert [text.index(f"\n{letter}<") for letter in "SUAV"] == sorted(text.index(f"\n{letter}<") for letter in "SUAV")


def test_chat_markers_are_special_even_if_the_tokenizer_does_not_list_them() -> None:
    from tokenizers import AddedToken

    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken("<|header|>", special=True), AddedToken("WORD", special=False)])
    listed = special_token_ids(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|header|>") not in tokenizer.all_special_ids
    assert tokenizer.convert_tokens_to_ids("<|header|>") in listed
    assert tokenizer.convert_tokens_to_ids("WORD") not in listed
    assert set(tokenizer.all_special_ids) <= set(listed)


def test_the_date_of_a_template_is_the_configured_one() -> None:
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    tokenizer = tokenizer_of(template)
    ids = Chat(template, date="2025-02-03").encode(tokenizer, Prompt("a", "x"))
    assert "".join(tokenizer.convert_ids_to_tokens(list(ids))) == "03 Feb 2025 x"


def test_rejected_conversations_are_errors_with_their_place() -> None:
    tokenizer = tokenizer_of(TEMPLATE)
    tool = Prompt("a", "x", messages=(Message("tool", "x"),), where="f.jsonl:3")
    with pytest.raises(InputError, match=r"f.jsonl:3: prompt 'a'.*no tools here"):
        encode_prompt(tokenizer, tool, chat=Chat(TEMPLATE))
    with pytest.raises(InputError, match=r"f.jsonl:3: prompt 'a'.*cache.chat_template"):
        encode_prompt(tokenizer, tool)


def test_the_choice_of_a_template() -> None:
    plain, one, other = tokenizer_of(None), tokenizer_of(TEMPLATE), tokenizer_of("{{ messages[0].content }}")
    assert choose_template({"base": plain, "rl": one, "sft": one}, True) == TEMPLATE
    assert choose_template({"base": plain, "rl": one, "sft": other}, "rl") == TEMPLATE
    with pytest.raises(ConfigError, match=r"rl, sft.*chat_template = '"):
        choose_template({"base": plain, "rl": one, "sft": other}, True)
    with pytest.raises(ConfigError, match="base, rl"):
        choose_template({"base": plain, "rl": plain}, True)
    with pytest.raises(ConfigError, match="tokenizer of base"):
        choose_template({"base": plain, "rl": one}, "base")
    with pytest.raises(ConfigError, match=r"'gold'.*base"):
        choose_template({"base": plain}, "gold")
