"""Labelers: one call per feature, one-sentence errors, and labels that survive a failure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mechprobe.errors import ArtifactError, LabelError, MechprobeError
from mechprobe.features.examples.labels import Labels, label_features
from mechprobe.files import read_json, write_json

ENTRIES = [{"feature": k, "examples": [{"tokens": ["a", str(k)]}]} for k in (5, 3, 8)]


class Fake:
    """Records its calls, and fails on a given feature."""

    def __init__(self, fails_on: int | None = None, answer: Any = None) -> None:
        self.fails_on, self.answer, self.asked = fails_on, answer, list[int]()

    def __call__(self, entry: Mapping[str, Any]) -> str:
        self.asked.append(entry["feature"])
        if entry["feature"] == self.fails_on:
            if self.answer is None:
                raise RuntimeError("quota exceeded\nmore lines")
            return self.answer
        return f"  reads {entry['examples'][0]['tokens'][1]} "


def test_every_feature_is_asked_once_and_in_order(tmp_path: Path) -> None:
    labeler = Fake()
    labels = label_features(ENTRIES, labeler, out=tmp_path / "labels.json")
    assert labeler.asked == [5, 3, 8]
    assert labels.labels == {5: "reads 5", 3: "reads 3", 8: "reads 8"}
    assert labels.labeler == "Fake"
    assert Labels.load(tmp_path / "labels.json") == labels
    label_features(ENTRIES, labeler, out=tmp_path / "labels.json")
    assert labeler.asked == [5, 3, 8]


def test_the_name_of_a_function_is_its_own_unless_given() -> None:
    def first_token(entry: Mapping[str, Any]) -> str:
        return entry["examples"][0]["tokens"][0]

    assert label_features(ENTRIES, first_token).labeler.endswith("first_token")
    assert label_features(ENTRIES, first_token, name="by hand").labeler == "by hand"


def test_a_failure_is_one_sentence_and_keeps_what_was_labelled(tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    with pytest.raises(LabelError, match=r"'Fake'.* feature 3 .*RuntimeError: quota exceeded") as info:
        label_features(ENTRIES, Fake(fails_on=3), out=out)
    assert isinstance(info.value, MechprobeError)
    assert "\n" not in str(info.value)
    assert info.value.labels.labels == {5: "reads 5"}
    kept = read_json(out)
    assert [row["label"] for row in kept["labels"]] == ["reads 5"]
    assert "quota exceeded" in kept["failure"]
    labeler = Fake()
    labels = label_features(ENTRIES, labeler, out=out)
    assert labeler.asked == [3, 8]
    assert labels.failure == ""
    assert read_json(out)["failure"] == ""


@pytest.mark.parametrize("answer", ["", " \n", 7, b"x"])
def test_what_is_no_text_is_refused(answer: Any) -> None:
    with pytest.raises(LabelError, match="feature 8") as info:
        label_features(ENTRIES, Fake(fails_on=8, answer=answer))
    assert set(info.value.labels.labels) == {5, 3}


def test_an_interrupt_is_no_failure_of_the_labeler(tmp_path: Path) -> None:
    def stopped(entry: Mapping[str, Any]) -> str:
        if entry["feature"] == 3:
            raise KeyboardInterrupt
        return "x"

    with pytest.raises(KeyboardInterrupt):
        label_features(ENTRIES, stopped, out=tmp_path / "labels.json")
    assert Labels.load(tmp_path / "labels.json").labels == {5: "x"}


def test_other_examples_are_labelled_anew(tmp_path: Path) -> None:
    out, labeler = tmp_path / "labels.json", Fake()
    label_features(ENTRIES, labeler, out=out)
    changed = [{**ENTRIES[0], "examples": [{"tokens": ["a", "new"]}]}, *ENTRIES[1:]]
    assert label_features(changed, labeler, out=out).labels[5] == "reads new"
    assert labeler.asked == [5, 3, 8, 5]


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    label_features(ENTRIES, Fake(), out=tmp_path / "labels.json")
    with pytest.raises(ArtifactError, match=r"'Fake'.*'mine'"):
        label_features(ENTRIES, Fake(), name="mine", out=tmp_path / "labels.json")
    write_json(tmp_path / "other.json", {"labels": 3})
    with pytest.raises(ArtifactError, match=r"other.json"):
        label_features(ENTRIES, Fake(), out=tmp_path / "other.json")
