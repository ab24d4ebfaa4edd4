"""Which sequences each model reads, which predictions count, and the cell of each."""

from dataclasses import replace

import numpy as np
import pytest

from mechprobe.data.stream import TokenStream, build_stream
from mechprobe.data.tokens import Document, TokenSequence
from mechprobe.drift import DriftConfig
from mechprobe.drift.divergence.columns import BUCKETS, CLASSES
from mechprobe.drift.divergence.texts import DriftTexts, Origin, buckets_of, token_classes
from tests.builders import build_tokenizer


def sequence(prompt: str, source: str | None, n_response: int, n_prompt: int = 3) -> TokenSequence:
    name = prompt if source is None else f"{prompt}#{source}"
    return TokenSequence(
        name, prompt, "task", source, tuple(range(10, 10 + n_prompt)), tuple(range(30, 30 + n_response))
    )


def stream_of(*sequences: TokenSequence) -> TokenStream:
    return build_stream(sequences, special_ids=(), tokenizer_fingerprint="t", held_out_frac=0.0)


def texts_of(*sequences: TokenSequence, **settings: int) -> DriftTexts:
    return DriftTexts.of(stream_of(*sequences), "base", ["rl@step_000002", "rl"], DriftConfig(**settings))  # type: ignore[arg-type]


def test_names_of_checkpoints_are_read_before_the_temperature() -> None:
    assert Origin.of(sequence("a", "rl@step_000002@0.7", 1)) == Origin("rl@step_000002", 0.7)
    assert Origin.of(sequence("a", None, 1)) == Origin("", None)


def test_every_model_reads_base_and_gold_and_its_own() -> None:
    texts = texts_of(
        sequence("a", "base@1.0", 2), sequence("a", "rl@0.0", 3), sequence("a", "rl@step_000002@1.0", 4), sequence("a", "dpo@1.0", 5),
        sequence("b", None, 6),
    )  # fmt: skip
    read = {texts.stream.sequences[i].id: (texts.label(i), texts.readers(i)) for i in texts.chosen}
    both = ("rl@step_000002", "rl")
    assert read == {
        "a#base@1.0": ("base@1", both), "a#rl@0.0": ("own@0", ("rl",)), "a#rl@step_000002@1.0": ("own@1", both[:1]), "b": ("gold", both),
    }  # fmt: skip


def test_the_first_response_token_counts_and_prompts_count_once() -> None:
    texts = texts_of(sequence("a", "rl@0.0", 3), sequence("a", "base@1.0", 2))
    place = {texts.stream.sequences[i].id: i for i in texts.chosen}
    assert (
        texts.counted("rl", place["a#base@1.0"]).tolist() == [True] * 4
    )  # 2 of the prompt of 3, and 2 of the response
    assert texts.counted("rl", place["a#rl@0.0"]).tolist() == [False, False, True, True, True]
    alone = texts_of(sequence("a", "rl@0.0", 3))
    assert alone.counted("rl", alone.chosen[0]).all()


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, "a"),
        (2, "fa"),
        (3, "fma"),
        (10, "f" + 8 * "m" + "a"),
        (11, "ff" + 7 * "m" + "aa"),
        (20, "ff" + 16 * "m" + "aa"),
    ],
)
def test_tenths_are_rounded_up_and_the_answer_wins(n: int, expected: str) -> None:
    found = buckets_of(sequence("a", None, n))
    assert [BUCKETS[index][0] for index in found] == ["p"] * 3 + list(expected)


def test_packed_documents_have_buckets_of_their_own() -> None:
    documents = (Document("x", None, 0, 2, 3), Document("y", None, 6, 1, 1))
    packed = TokenSequence("packed", "packed", None, None, tuple(range(8)), (), 0, documents)
    assert "".join(BUCKETS[index][0] for index in buckets_of(packed)) == "ppfmappa"


def test_prompts_are_drawn_with_all_their_continuations() -> None:
    sequences = [sequence(name, source, 2) for name in "abcdef" for source in ("base@1.0", "rl@1.0")]
    texts = texts_of(*sequences, max_prompts=2)
    assert sorted(texts.stream.sequences[i].source or "" for i in texts.chosen) == ["base@1.0"] * 2 + ["rl@1.0"] * 2
    assert len({texts.stream.sequences[i].prompt_id for i in texts.chosen}) == 2
    assert texts.chosen == texts_of(*sequences, max_prompts=2).chosen


def test_many_missing_models_are_listed_once_and_short() -> None:
    texts = texts_of(sequence("a", "base@1.0", 2))
    many = replace(texts, models=tuple(f"rl@step_{step:06d}" for step in range(9)))
    said = next(iter(many.missing()))
    assert "no responses of rl@step_000000, rl@step_000001, rl@step_000002 and 6 more, so" in said
    assert said.count("step_") == 4


def test_missing_sources_are_named() -> None:
    said = " ".join(texts_of(sequence("a", "rl@1.0", 2)).missing())
    assert "no responses of rl@step_000002," in said
    assert '"rl@step_000002@1.0"' in said
    assert "source base are missing" in said
    assert "source gold are missing" in said
    assert "gold" not in " ".join(texts_of(sequence("a", None, 2)).missing())


def test_classes_of_tokens() -> None:
    tokenizer = build_tokenizer(("SO", "WHY"))
    config = DriftConfig(procedural=("so",))
    found = token_classes(tokenizer, len(tokenizer), config)
    named = {
        text: CLASSES[found[tokenizer.convert_tokens_to_ids(text)]]
        for text in ("7", "+", "(", "SO", "WHY", "a", "<eos>")
    }
    assert named == {
        "7": "digits",
        "+": "operators",
        "(": "other",
        "SO": "procedural",
        "WHY": "other",
        "a": "other",
        "<eos>": "special",
    }
    assert np.array_equal(found, token_classes(tokenizer, len(tokenizer), config))
