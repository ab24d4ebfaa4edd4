"""Classes of tokens: words, phrases, the answer, compact texts, and lists that cannot be used."""

import pytest
from hypothesis import given, settings, strategies as st

from mechprobe.dynamics.logprobs.classes import TokenClasses, answer_tokens, word_pattern
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.errors import ConfigError
from mechprobe.lab.tokenizer import build_tokenizer as lab_tokenizer
from tests.builders import build_tokenizer

TOKENIZER = build_tokenizer()
CLASSES = TokenClasses(TOKENIZER, LogprobsConfig())


def named(classes: TokenClasses, tokenizer, text: str, answer: str | None = None) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return [classes.names[index] for index in classes.of(ids, answer)]


def test_words_and_phrases_cover_all_their_tokens() -> None:
    found = named(CLASSES, TOKENIZER, "Wait, let me check: some 12+3")
    assert found[:4] == ["backtrack"] * 4
    assert found[4:6] == ["other"] * 2
    assert found[6:18] == ["backtrack"] * 12  # the phrase, not only its last word
    assert found[19:24] == ["other"] * 5  # "so" inside "some"
    assert found[-4:] == ["digits", "digits", "operators", "digits"]


def test_a_word_of_two_lists_belongs_to_the_first() -> None:
    assert set(named(CLASSES, TOKENIZER, "check")) == {"backtrack"}
    other = TokenClasses(TOKENIZER, LogprobsConfig(classes={"mine": ("check",), "backtrack": ("check",)}))
    assert set(named(other, TOKENIZER, "check")) == {"mine"}


def test_the_answer_goes_before_all_others() -> None:
    assert named(CLASSES, TOKENIZER, "12 so 12", "12") == ["digits"] * 2 + ["other"] + ["procedural"] * 2 + [
        "other",
        "answer",
        "answer",
    ]
    assert "answer" not in named(CLASSES, TOKENIZER, "112 or 123", "12")
    assert "answer" not in named(CLASSES, TOKENIZER, "15", None)
    assert answer_tokens(["x"] * 10 + ["1"] * 100, "x") == []


def test_compact_texts_of_the_lab() -> None:
    tokenizer = lab_tokenizer()
    classes = TokenClasses(tokenizer, LogprobsConfig())
    ids = [*tokenizer("SO 4+7 CHECK 1 ANS 1 1").input_ids[1:], tokenizer.eos_token_id]
    found = [classes.names[index] for index in classes.of(ids, "11")]
    assert found == [
        "procedural", "digits", "operators", "digits", "backtrack", "digits", "procedural", "answer", "answer", "special"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"classes": {"backtrack": ("WAIT",)}}, "lists 'WAIT', which the tokenizer of the models cannot write"),
        ({"backtrack": "other"}, "logprobs.backtrack is 'other', which is none of the classes"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(settings_: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenClasses(lab_tokenizer(), LogprobsConfig(**settings_))


@pytest.mark.parametrize(("classes", "message"), [({"digits": ("a",)}, "taken"), ({"a": (" ",)}, "blank word")])
def test_names_and_blank_words_are_refused(classes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogprobsConfig(classes=classes)


def test_given_classes_keep_the_defaults_unless_they_are_empty() -> None:
    found = LogprobsConfig(classes={"mine": ("so",), "procedural": ()})
    assert found.class_names[:2] == ("mine", "backtrack")
    assert "procedural" not in found.replace(draws=200).class_names
    classes = TokenClasses(TOKENIZER, found)
    assert set(named(classes, TOKENIZER, "so")) == {"mine"}
    assert set(named(classes, TOKENIZER, "then")) == {"other"}


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="abtwice kh12+ \n", max_size=40), st.sampled_from(["", "1", "12", "wait"]))
def test_every_token_has_one_class_and_words_are_whole(text: str, answer: str) -> None:
    found = named(CLASSES, TOKENIZER, text, answer or None)
    assert len(found) == len(text)
    spans = {place for match in word_pattern(("wait", "check")).finditer(text) for place in range(*match.span())}
    marked = {place for place, name in enumerate(found) if name == "backtrack"}
    assert marked == spans - {place for place, name in enumerate(found) if name == "answer"}
