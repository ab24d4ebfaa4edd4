"""Chat templates: the tokens of a conversation, the boundary between prompt and response, and every error."""

import json
from pathlib import Path

import pytest

from mechprobe.data.chat import choose_template
from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.lengths import join
from mechprobe.data.messages import Message
from mechprobe.data.prompts import Prompt
from mechprobe.data.sources import as_prompts
from mechprobe.data.tokens import special_token_ids
from mechprobe.errors import ConfigError, InputError
from mechprobe.progress import forget_told
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


def encoder_of(template: str | None, **rule: object) -> PromptEncoder:
    tokenizers = {"base": build_tokenizer(), "rl": tokenizer_of(template)}
    return PromptEncoder.of(tokenizers, TextConfig(chat_template=template is not None, **rule))  # type: ignore[arg-type]


def said(encoder: PromptEncoder, ids: tuple[int, ...]) -> str:
    return "".join(encoder.tokenizer.convert_ids_to_tokens(list(ids)))


def turn(role: str, content: object = None, **fields: object) -> Message:
    return {"role": role, "content": content, **fields}


def test_the_prompt_is_the_template_and_the_response_keeps_its_own_tokens() -> None:
    encoder = encoder_of(TEMPLATE, system_prompt="Be brief")
    prompt = Prompt("a", "2+2?", "It is 4")
    ids = encoder.encode(prompt)
    text = "<bos><|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert said(encoder, ids) == text
    sequence = join(prompt, ids, encoder.encode_response(prompt), max_length=200)
    assert sequence is not None
    answer = [i for i, is_response in zip(sequence.ids, sequence.is_response, strict=True) if is_response]
    assert said(encoder, tuple(answer)) == "It is 4"
    assert sequence.is_response.tolist() == [False] * len(ids) + [True] * 7


def test_a_conversation_keeps_its_own_system_message() -> None:
    encoder = encoder_of(TEMPLATE, system_prompt="Be brief")
    turns = (turn("system", "S"), turn("user", "U"), turn("assistant", "A"), turn("user", "V"))
    text = said(encoder, encoder.encode(Prompt("a", "V", messages=turns)))
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
    encoder = encoder_of("{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}", chat_date="2025-02-03")
    assert said(encoder, encoder.encode(Prompt("a", "x"))) == "03 Feb 2025 x"


def test_rejected_conversations_are_errors_with_their_place() -> None:
    tool = Prompt("a", "x", messages=(turn("tool", "x"),), where="f.jsonl:3")
    with pytest.raises(InputError, match=r"f.jsonl:3: prompt 'a'.*no tools here"):
        encoder_of(TEMPLATE).encode(tool)
    with pytest.raises(InputError, match=r"f.jsonl:3: prompt 'a'.*text.chat_template"):
        encoder_of(None).encode(tool)


def test_the_choice_of_a_template() -> None:
    plain, one, other = tokenizer_of(None), tokenizer_of(TEMPLATE), tokenizer_of("{{ messages[0].content }}")
    assert choose_template({"base": plain, "rl": one, "sft": one}, True) == ("rl", TEMPLATE)
    assert choose_template({"base": plain, "rl": one, "sft": other}, "rl") == ("rl", TEMPLATE)
    with pytest.raises(ConfigError, match=r"rl, sft.*text.chat_template = '"):
        choose_template({"base": plain, "rl": one, "sft": other}, True)
    with pytest.raises(ConfigError, match="base, rl"):
        choose_template({"base": plain, "rl": plain}, True)
    with pytest.raises(ConfigError, match="tokenizer of base"):
        choose_template({"base": plain, "rl": one}, "base")
    with pytest.raises(ConfigError, match=r"'gold'.*base"):
        choose_template({"base": plain}, "gold")


def test_bos_precedes_a_text_once() -> None:
    tokenizer = build_tokenizer()
    bos = tokenizer.bos_token_id

    def ids(text: str, **rule: object) -> list[int]:
        encoder = PromptEncoder.of({"base": tokenizer}, TextConfig(**rule))  # type: ignore[arg-type]
        return list(encoder.encode(Prompt("a", text)))

    x = tokenizer.convert_tokens_to_ids("x")
    assert ids("x") == ids("<bos>x") == ids("x", bos="always") == ids("<bos>x", bos="always") == [bos, x]
    assert ids("x", bos="never") == [x]
    assert ids("<bos>x", bos="never") == [bos, x]
    assert ids("<bos><bos>x") == [bos, bos, x]  # as it is written
    tokenizer.backend_tokenizer.post_processor = None
    assert ids("x") == [x]
    assert ids("x", bos="always") == ids("<bos>x", bos="always") == [bos, x]
    tokenizer.bos_token = None
    with pytest.raises(ConfigError, match=r'text.bos = "always", but the tokenizer has no BOS token'):
        ids("x", bos="always")


def test_a_template_decides_on_bos_alone() -> None:
    bare = TEMPLATE.removeprefix("{{ bos_token }}")
    bos = encoder_of(bare).tokenizer.bos_token_id
    assert encoder_of(bare).encode(Prompt("a", "x")).count(bos) == 0  # although the tokenizer puts it before plain text
    for rule in ({}, {"bos": "always"}, {"bos": "never"}):
        assert encoder_of(TEMPLATE, **rule).encode(Prompt("a", "x")).count(bos) == 1
    assert encoder_of(bare, bos="always").encode(Prompt("a", "x"))[0] == bos


def test_a_rendered_prompt_is_not_rendered_again() -> None:
    encoder = encoder_of(TEMPLATE)
    with pytest.raises(InputError, match=r"is rendered already .*im_start.*text.chat_template=false"):
        encoder.encode(Prompt("a", encoder.render(Prompt("b", "x"))))


THINKING = (
    "{% for m in messages %}{% if m.role == 'tool' %}<tool>{{ m.content | tojson }}</tool>{% else %}"
    "<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content | trim }}\n</think>\n\n"
    "{% endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": "2", "why": 'say "two"'}}}


def asked(*messages: Message, reply: Message | None = None) -> Prompt:
    return Prompt("a", "x", "" if reply else None, messages=messages, reply=reply, where="f:1")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_the_thinking_of_a_response_is_part_of_it(key: str) -> None:
    encoder = encoder_of(THINKING)
    reply = turn("assistant", "It is 4", **{key: "2 and 2\n"})
    assert said(encoder, encoder.encode_response(asked(turn("user", "2+2?"), reply=reply))) == (
        "<think>\n2 and 2\n</think>\n\nIt is 4"
    )
    called = turn("assistant", tool_calls=[CALL])
    text = said(encoder, encoder.encode_response(asked(turn("user", "2+2?"), reply=called)))
    assert text.startswith("<call>")
    assert text.endswith("</call>")
    assert '"name": "add"' in text


def test_what_a_template_does_not_print_is_refused_and_not_dropped(caplog: pytest.LogCaptureFixture) -> None:
    thought = turn("assistant", "It is 4", reasoning_content="2 and 2")
    with pytest.raises(InputError, match=r"f:1: prompt 'a'.*leaves out 'reasoning_content' of the response"):
        encoder_of(TEMPLATE).encode_response(asked(turn("user", "x"), reply=thought))
    with pytest.raises(InputError, match="leaves out 'reasoning_content' of the assistant message 2"):
        encoder_of(TEMPLATE).encode(asked(turn("user", "x"), thought, turn("user", "y")))
    with pytest.raises(InputError, match="leaves out 'tool_calls' of the assistant message 2"):
        encoder_of(TEMPLATE).encode(
            asked(turn("user", "x"), turn("assistant", "", tool_calls=[CALL]), turn("user", "y"))
        )
    users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="leaves out 'content' of the system message 1"):
        encoder_of(users, system_prompt="Be brief").encode(Prompt("a", "x"))
    with pytest.raises(InputError, match=r"begins the response in another way .* set text.enable_thinking"):
        encoder_of(THINKING, enable_thinking=False).encode_response(asked(turn("user", "x"), reply=thought))
    assert not caplog.records
    forget_told()
    text = encoder_of(THINKING).render(asked(turn("user", "x"), thought, turn("tool", 'say "y"\n'), turn("user", "z")))
    assert "2 and 2" not in text  # by the design of the template, so it is told
    encoder_of(THINKING).render(asked(turn("user", "x"), thought, turn("user", "z")))
    assert [record.getMessage() for record in caplog.records] == [
        "The chat template leaves out the thinking of earlier turns, as it does when the model is served."
    ]


def test_parts_are_printed_by_the_template_or_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    prompt = asked(turn("user", parts))
    assert "<|im_start|>user\none\ntwo<|im_end|>" in encoder_of(TEMPLATE).render(prompt)
    printing = "{% for p in messages[0].content %}[{{ p.text }}]{% endfor %}"
    assert encoder_of(printing).render(prompt) == "[one][two]"
    python_form = "{{ messages[0].content }}"  # would print the list as Python does
    assert encoder_of(python_form).render(prompt) == "one\ntwo"


def test_a_block_of_thinking_that_the_prompt_opens_is_known() -> None:
    tags = ("<think>", "</think>")
    question = Prompt("a", "What does <think> mean?")
    opening = TEMPLATE.replace("assistant\\n'", "assistant\\n<think>\\n'")
    assert encoder_of(opening).opens_thinking(question, tags)
    assert not encoder_of(TEMPLATE).opens_thinking(question, tags)
    assert not encoder_of(THINKING, enable_thinking=False).opens_thinking(question, tags)
    assert not encoder_of(None).opens_thinking(question, tags)
    assert encoder_of(None).opens_thinking(Prompt("a", "x\n<|im_start|>assistant\n<think>\n"), tags)


def test_a_switch_that_the_template_does_not_read_is_refused() -> None:
    assert "<think>\n\n</think>" in encoder_of(THINKING, enable_thinking=False).render(Prompt("a", "x"))
    with pytest.raises(ConfigError, match=r"text.enable_thinking is set, but the chat template of rl does not read it"):
        encoder_of(TEMPLATE, enable_thinking=False)
    with pytest.raises(ConfigError, match=r"enable_thinking needs chat_template = true"):
        TextConfig(enable_thinking=True)


def test_a_file_of_conversations_needs_no_setting_and_keeps_every_field(tmp_path: Path) -> None:
    reply = {"role": "assistant", "content": "It is 4", "reasoning_content": "2 and 2", "tool_calls": None}
    lines = [{"messages": [{"role": "user", "content": "2+2?"}, reply]}, {"prompt": "3+3?"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    talk, plain = as_prompts(path)
    assert (plain.prompt, plain.messages, talk.prompt, talk.response) == ("3+3?", None, "2+2?", "It is 4")
    encoder = encoder_of(THINKING)
    assert "2 and 2" in said(encoder, encoder.encode_response(talk))
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]}))
    with pytest.raises(InputError, match=r"'messages\[1\]' has no 'content' \(it has role\)"):
        as_prompts(path)
