"""Typed results: frozen records that survive the file, with errors that name the field."""

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from mechprobe.errors import ArtifactError
from mechprobe.files import write_json
from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.statistics import Interval


class Effect(Result):
    name: str
    value: Number = 0.0
    interval: IntervalNumbers = Interval(0.0, 0.0, 0.0, 0)


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    effect = Effect(name="a", value=0.25, interval=Interval(0.25, 0.1, 0.4, 20))
    effect.save(tmp_path / "effect.json")
    assert Effect.load(tmp_path / "effect.json") == effect


def test_nan_is_null_in_the_file(tmp_path: Path) -> None:
    Effect(name="a", value=math.nan, interval=Interval(math.nan, 0.0, 1.0, 0)).save(tmp_path / "effect.json")
    assert "NaN" not in (tmp_path / "effect.json").read_text()
    again = Effect.load(tmp_path / "effect.json")
    assert math.isnan(again.value)
    assert math.isnan(again.interval.value)
    assert again.interval.high == 1.0


def test_a_result_is_frozen() -> None:
    effect = Effect(name="a")
    with pytest.raises(ValidationError, match="frozen"):
        effect.value = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("content", "field"), [({"value": 1.0}, "name"), ({"name": "a", "extra": 1}, "extra")])
def test_a_file_with_another_result_is_an_error_with_file_and_field(
    tmp_path: Path, content: dict[str, object], field: str
) -> None:
    write_json(tmp_path / "effect.json", content)
    with pytest.raises(ArtifactError, match=rf"effect\.json.*Effect.*{field}"):
        Effect.load(tmp_path / "effect.json")
