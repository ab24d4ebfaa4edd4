"""Tokens that a decoder promotes in each model, and their text."""

from pathlib import Path

import pytest
import torch

from mechprobe.features.examples.promoted import promoted_by_features, promoted_tokens, token_text
from mechprobe.models.family import ModelFamily
from tests.small_dictionaries import make_crosscoder


@pytest.fixture
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load(llama_family)


def test_both_ends_are_those_of_a_full_sort(family: ModelFamily) -> None:
    model = family["rl"]
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    hf = model.hf
    logits = directions @ (hf.lm_head.weight * hf.model.norm.weight).T  # type: ignore[union-attr]
    logits = logits - logits.mean(dim=1, keepdim=True)
    for row, found in zip(logits, promoted_tokens(model, directions, family.tokenizer, n=5), strict=True):
        ranked = sorted(range(len(row)), key=lambda token: -float(row[token]))
        assert [token.id for token in found.promoted] == ranked[:5]
        assert [token.id for token in found.suppressed] == ranked[::-1][:5]
        for token in (*found.promoted, *found.suppressed):
            assert token.value == pytest.approx(float(row[token.id]), abs=1e-3)
            assert token.token == token_text(family.tokenizer, token.id)


def test_every_model_is_asked_in_its_own_units(family: ModelFamily) -> None:
    crosscoder = make_crosscoder(d_model=32)
    found = promoted_by_features(crosscoder, family, [4, 1], n=3)
    for place, feature in enumerate((4, 1)):
        assert list(found[place]["models"]) == ["base", "sft", "rl"]
        for index, name in enumerate(crosscoder.model_names):
            direction = crosscoder.W_dec[feature, index].detach() * crosscoder.scale[index]
            [expected] = promoted_tokens(family[name], direction[None], family.tokenizer, n=3)
            assert [t["id"] for t in found[place]["models"][name]["promoted"]] == [t.id for t in expected.promoted]
            assert found[place]["models"][name]["promoted"][0]["value"] == expected.promoted[0].value


def test_weights_that_were_not_loaded_are_dropped_again(family: ModelFamily) -> None:
    _ = family["base"].hf
    promoted_by_features(make_crosscoder(d_model=32), family, [0], n=1)
    assert [name for name in family.names if "hf" in family[name].__dict__] == ["base"]


def test_rows_without_a_token_are_left_out(family: ModelFamily) -> None:
    class Half:
        """Knows the first half of the vocabulary."""

        def __len__(self) -> int:
            return 10

        def decode(self, ids: list[int], **_: object) -> str:
            return f"<{ids[0]}>"

    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    for found in promoted_tokens(family["base"], directions, Half(), n=50):
        assert sorted(token.id for token in found.promoted) == list(range(10))


def test_parts_of_characters_are_spelled_as_in_the_vocabulary() -> None:
    class Bytes:
        def decode(self, ids: list[int], **_: object) -> str:
            return "\ufffd" if ids[0] == 1 else ""

        def convert_ids_to_tokens(self, token: int) -> str:
            return f"<0x{token:02X}>"

    assert token_text(Bytes(), 1) == "<0x01>"
    assert token_text(Bytes(), 2) == "<0x02>"
