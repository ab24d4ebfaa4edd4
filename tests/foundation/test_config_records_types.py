"""Settings, sites and JSON lines: errors are one sentence with the place and the fix."""

import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mechprobe.config import FrozenConfig, parse_value, read_toml, with_overrides
from mechprobe.errors import ConfigError, InputError, SiteError
from mechprobe.json_fields import text_field
from mechprobe.records import Outcome, Outcomes, read_jsonl, read_outcomes, write_jsonl
from mechprobe.run_config import RunConfig
from mechprobe.types import Site


class Inner(FrozenConfig):
    temperature: float = 0.0


class Outer(FrozenConfig):
    inner: Inner = Inner()


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        Outer(inner={"temprature": 1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.choice.orders=0", "orders = 0 is not accepted: Input should be greater than or equal to 1, or be 'cyclic'."),
        ("device_map=3", "device_map = 3 is not accepted: Input should be a valid string, or be a valid dictionary."),
        ("device_map={a=[1]}", "device_map.a = [1] is not accepted: Input should be a valid integer, or be a valid string."),
        ("localize.sites=[3]", "sites.0 = 3 is not accepted: Input should be a valid string."),
        ("text.chat_template=3", "chat_template = 3 is not accepted: "),
        ("intervene.sizes=[0,0]", "sizes.0 = 0 is not accepted: Input should be greater than or equal to 1. (1 more problem)"),
        ("near=5", "near = 5 is not accepted: Input should be a list."),
        ("intervene.doses=clamp", "doses = 'clamp' is not accepted: Input should be a list."),
        ("intervene.seed=-1", "seed = -1 is not accepted: Input should be greater than or equal to 0."),
        ("tasks.scorers={a=3}", "scorers.a = 3 is not accepted: "),
    ],
)  # fmt: skip
def test_an_error_names_the_key_that_was_written(override: str, message: str) -> None:
    """Pydantic adds the branch of a union to the key; the message must not."""
    with pytest.raises(ConfigError, match=r"^(\w+|\[\w+\]): " + re.escape(message)):
        RunConfig.build(None, [override])


def test_errors_of_shared_settings_and_of_sections_name_the_run_configuration() -> None:
    with pytest.raises(ConfigError, match=r"^RunConfig: seed = -1"):
        RunConfig.build(None, ["seed=-1"])
    with pytest.raises(ConfigError, match=r"^RunConfig: intervene = 5"):
        RunConfig.build(None, ["intervene=5"], extra={"intervene": {"features": "top:1"}})


def test_an_error_of_a_section_names_the_section() -> None:
    with pytest.raises(ConfigError, match=r"^\[select\]: unknown key 'features'; known keys: also, base, "):
        RunConfig.build(None, ["select.features=top:3"])


def test_overrides() -> None:
    assert with_overrides({}, ["a.b=[1, 2]", "c=top50", "d=1e-3"]) == {"a": {"b": [1, 2]}, "c": "top50", "d": 1e-3}
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        with_overrides({}, ["nothing"])
    with pytest.raises(ConfigError, match="a value, not a section"):
        with_overrides({"a": 1}, ["a.b=2"])


def test_overrides_do_not_change_the_original() -> None:
    data = {"a": {"b": 1}}
    with_overrides(data, ["a.b=2"])
    assert data == {"a": {"b": 1}}


@given(st.integers() | st.booleans() | st.text("abcxyz_", min_size=1))
def test_parse_value_reads_back(value: int | bool | str) -> None:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    assert parse_value(text) == value or not -(2**63) <= int(value) < 2**63


def test_toml_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_toml(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        read_toml(tmp_path / "bad.toml")


def test_sites() -> None:
    assert str(Site.parse("resid_post.12")) == "resid_post.12"
    assert Site.parse("resid_post.2").hook_name == "blocks.2.hook_resid_post"
    assert Site(0) < Site(3)
    for text in ("resid_post", "resid_post.-1", "mlp_out.2", "resid_post.2.1", ""):
        with pytest.raises(SiteError, match=r"resid_post\.<layer>"):
            Site.parse(text)
    with pytest.raises(SiteError, match=r"resid_post\.0 to resid_post\.2"):
        Site(3).check(3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n[1]\n", r":2 is a list"),
        (b'{"a": 1}\n{"a": \n', r":2 is not a JSON object"),
        (b'{"a": "\xff"}\n', r":1 is not UTF-8"),
        (b"[" * 100_000 + b"\n", r":1 is not a JSON object"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_jsonl(path))


def test_text_field() -> None:
    assert text_field({"a": "x"}, "a", "here") == "x"
    assert text_field({}, "a", "here", default="d") == "d"
    for item, message in (
        ({}, "no field 'a'"),
        ({"a": 3}, "'a' is the number 3; it must be text, so write it in quotes"),
        ({"a": "  "}, "is empty"),
    ):
        with pytest.raises(InputError, match=message):
            text_field(item, "a", "here")


def test_outcomes_round_trip_and_gained(tmp_path: Path) -> None:
    records = [
        Outcome(sample, "t", model, verdict, "text", 2, (4, 5))  # type: ignore[arg-type]
        for model, verdicts in (("base", ("wrong", "right", "unparsed")), ("rl", ("right", "right", "right")))
        for sample, verdict in zip("abc", verdicts, strict=True)
    ]
    write_jsonl(tmp_path / "o.jsonl", records)
    assert read_outcomes(tmp_path / "o.jsonl") == records
    outcomes = Outcomes(records)
    assert outcomes.gained("t", base="base", tuned="rl") == ["a", "c"]
    assert outcomes.right("base", "t") == [False, True, False]
    with pytest.raises(InputError, match="no outcome of model sft"):
        outcomes.right("sft", "t")
