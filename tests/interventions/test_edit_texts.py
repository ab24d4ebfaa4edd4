"""Texts of edits, sweeps and positions."""

import pytest
import torch

from mechprobe.errors import ConfigError, ModelError
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.edits.edit import Edit, edit_sweep, split_edits
from mechprobe.interventions.hooks.positions import CallTokens, PositionMask, PositionRule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clamp:0.5,1,3,10", ["clamp:0.5", "clamp:1", "clamp:3", "clamp:10"]),
        ("scale:0..2:5", ["scale:0", "scale:0.5", "scale:1", "scale:1.5", "scale:2"]),
        ("scale:1..-1:3", ["scale:1", "scale:0", "scale:-1"]),
        ("steer:-4..4:2", ["steer:-4", "steer:4"]),
        ("clamp:1e-1..1e1:2", ["clamp:0.1", "clamp:10"]),
        ("clamp:1234567,0.1234567", ["clamp:1234567", "clamp:0.1234567"]),
        ("clamp:3", ["clamp:3"]),
        ("ablate", ["ablate"]),
    ],
)
def test_sweeps(text: str, expected: list[str]) -> None:
    assert [str(edit) for edit in edit_sweep(text)] == expected
    assert [Edit.parse(str(edit)) for edit in edit_sweep(text)] == list(edit_sweep(text))


@pytest.mark.parametrize(
    ("text", "edits"),
    [
        ("ablate,transplant,scale:0.5", ("ablate", "transplant", "scale:0.5")),
        ("clamp:3.0, transplant,", ("clamp:3.0", "transplant")),
        ("clamp:0.5,1,3,transplant,steer:2..8:4", (
            "clamp:0.5", "clamp:1", "clamp:3", "transplant", "steer:2", "steer:4", "steer:6", "steer:8",
        )),
        ("", ()),
    ],
)  # fmt: skip
def test_edits_of_both_models_and_doses_may_be_sweeps(text: str, edits: tuple[str, ...]) -> None:
    one_model = tuple(edit for edit in edits if edit != "transplant")
    listed = split_edits(text)
    found = InterveneConfig(edits_base=listed, edits_tuned=listed, doses=tuple(t for t in listed if t != "transplant"))
    assert (found.edits_base, found.edits_tuned, found.doses) == (edits, edits, one_model)


def test_a_sweep_ends_exactly_where_it_says() -> None:
    values = [edit.value for edit in edit_sweep("scale:0.1..0.7:7")]
    assert values[0] == 0.1
    assert values[-1] == 0.7
    assert values == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("delete:1,2", "'delete:1,2'"),
        ("clamp", "clamp:<number>"),
        ("ablate:1,2", "ablate takes no value"),
        ("clamp:1,,3", "'' is not a finite number"),
        ("clamp:1,two", "'two' is not a finite number"),
        ("clamp:1,inf", "'inf' is not a finite number"),
        ("scale:0..2", "number of strengths"),
        ("scale:0..2:1", "number of strengths"),
        ("scale:0..2:-3", "number of strengths"),
        ("scale:0..2:1e9", "number of strengths"),
        ("scale:0..2:1001", "2 to 1000"),
        ("clamp:0..4:3,10", "mixes a range with a list .* clamp:0..4:3, clamp:10"),
        ("scale:..2:3", "'' is not a finite number"),
        ("scale:0..nan:3", "'nan' is not a finite number"),
    ],
)
def test_mistaken_sweeps_are_refused_before_the_first_edit(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        edit_sweep(text)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("all", PositionRule()),
        ("last_prompt_token", PositionRule("last_prompt_token")),
        ("response:not_special", PositionRule("response", "special", inverted=True)),
        ("all:special", PositionRule("all", "special")),
        ("prompt:tokens=5,7", PositionRule("prompt", (5, 7))),
        ("all:not_tokens=0", PositionRule("all", (0,), inverted=True)),
    ],
)
def test_positions_are_read_as_they_are_written(text: str, rule: PositionRule) -> None:
    assert PositionRule.parse(text) == rule
    assert str(rule) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "answer",
        "all:",
        "all:pads",
        "prompt:tokens=",
        "prompt:tokens=-1",
        "prompt:tokens=a",
        "all:all",
        "not_special",
    ],
)
def test_mistaken_positions_are_sentences(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}'.*all, prompt"):
        PositionRule.parse(text)


IDS = torch.tensor([[0, 0, 1, 7, 8], [1, 5, 7, 2, 9]])
LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
RIGHT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def mask(text: str, call: CallTokens) -> object:
    found = PositionMask(PositionRule.parse(text), special_ids=[0, 1, 2]).of(call)
    return found if isinstance(found, bool) else found.int().tolist()


def test_masks_by_hand() -> None:
    first, later = CallTokens(IDS, LEFT, 0, 5), CallTokens(IDS[:, -1:], None, 5, 1)
    assert mask("all", first) is True
    assert mask("all", later) is True
    assert mask("prompt", first) is True
    assert mask("prompt", later) is False
    assert mask("response", first) is False
    assert mask("response", later) is True
    assert mask("last_prompt_token", first) == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert mask("last_prompt_token", CallTokens(IDS, RIGHT, 0, 5)) == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    assert mask("last_prompt_token", CallTokens(IDS, None, 0, 5)) == [[0, 0, 0, 0, 1]]
    assert mask("last_prompt_token", later) is False
    assert mask("all:not_special", first) == [[0, 0, 0, 1, 1], [0, 1, 1, 0, 1]]
    assert mask("all:special", first) == [[0, 0, 1, 0, 0], [1, 0, 0, 1, 0]]  # padding is neither
    assert mask("all:not_special", CallTokens(IDS, RIGHT, 0, 5)) == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 1]]
    assert mask("all:tokens=7", first) == [[0, 0, 0, 1, 0], [0, 0, 1, 0, 0]]
    assert mask("prompt:not_tokens=7,0", first) == [[0, 0, 1, 0, 1], [1, 1, 0, 1, 1]]
    assert mask("prompt:tokens=7", later) is False
    assert mask("response:tokens=9", later) == [[0], [1]]
    assert mask("last_prompt_token:tokens=9", first) == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_what_a_mask_cannot_know_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="special_ids"):
        PositionMask(PositionRule.parse("all:not_special"))
    with pytest.raises(ModelError, match="input_ids"):
        mask("all:not_special", CallTokens(None, None, 0, 5))
    for text in ("prompt", "response", "last_prompt_token"):
        with pytest.raises(ModelError, match=f"'{text}'.* 3 tokens"):
            mask(text, CallTokens(IDS[:, :3], None, 5, 3))
    assert mask("all:tokens=7", CallTokens(IDS[:, :3], None, 5, 3)) == [[0, 0, 0], [0, 0, 1]]
