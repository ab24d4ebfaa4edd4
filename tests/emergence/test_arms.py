"""Arms and checkpoints from model names, settings and folders."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mechprobe.emergence.arms import (
    all_arms,
    checkpoint_folders,
    find_arms,
    recorded_step,
    with_checkpoints,
    with_recorded,
)
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ConfigError


def test_arms_are_read_from_names() -> None:
    names = ["base", "rl@step_000020", "sft", "rl@step_000004", "rl", "other", "sft@step_000002"]
    rl, sft = find_arms(names, EmergenceConfig(final_steps={"rl": 40}))
    assert (rl.name, rl.checkpoints) == ("rl", ("rl@step_000004", "rl@step_000020", "rl"))
    assert (rl.progress, rl.spaced_by) == ((0.0, 0.1, 0.5, 1.0), "steps")
    assert (rl.steps, rl.dated) == ((4, 20, 40), rl.progress)
    assert sft.steps == ()
    assert all(map(math.isnan, sft.dated))  # checkpoints that only count as evenly spaced date nothing
    assert [rl.label(name) for name in rl.checkpoints] == ["4", "20", "end"]
    (named,) = find_arms(["base", "a", "b"], EmergenceConfig(arms={"x": ("a", "b")}))
    assert [named.label(name) for name in named.checkpoints] == ["a", "end"]
    assert (sft.progress, sft.spaced_by) == ((0.0, 0.5, 1.0), "checkpoints")


def test_models_without_checkpoints_are_arms_of_one() -> None:
    arms = all_arms(["base", "other", "rl", "rl@step_000004", "sft@step_000002"], "base", {"rl": 8})
    assert [(arm.name, arm.checkpoints) for arm in arms] == [
        ("other", ("other",)),
        ("rl", ("rl@step_000004", "rl")),
        ("sft", ("sft@step_000002",)),
    ]
    assert [arm.progress for arm in arms] == [(0.0, 1.0), (0.0, 0.5, 1.0), (0.0, 1.0)]
    assert [arm.spaced_by for arm in arms] == ["checkpoints", "steps", "steps"]
    assert all_arms(["base"], "base", {}) == []


@pytest.mark.parametrize(
    ("names", "config", "message"),
    [
        (["base", "rl"], {}, "no checkpoint among the models"),
        (["rl", "rl@step_000001"], {}, "base is 'base'"),
        (["base", "rl@step_000001"], {}, "has 1 checkpoint"),
        (["base", "a", "b"], {"arms": {"x": ("a", "c")}}, "names 'c'"),
        (["base", "a", "b"], {"arms": {"x": ("a", "b", "a")}}, "names a model twice"),
        (["base", "a", "b"], {"arms": {"x": ("base", "a")}}, "names base"),
        (["base", "rl@step_000009", "rl"], {"final_steps": {"rl": 5}}, "arm rl .9, 5."),
    ],
)
def test_arms_that_cannot_be_are_refused(names: list[str], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_arms(names, EmergenceConfig(**config))


def test_checkpoint_folders_are_found(tmp_path: Path) -> None:
    for name in ("rl/step_000002", "rl/step_000010", "rl/notes", "sft/step_000004"):
        (tmp_path / name).mkdir(parents=True)
    assert list(checkpoint_folders(tmp_path)) == ["rl@step_000002", "rl@step_000010", "sft@step_000004"]
    assert with_checkpoints({"base": "b"}, "") == {"base": "b"}
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        checkpoint_folders(tmp_path / "rl")


def test_steps_are_read_from_the_folders_of_models(tmp_path: Path) -> None:
    """From ``step_<n>`` and from the manifest of an arm; given ones win, and whatever is no such manifest is no step."""
    manifests = {
        "rl": {"stage": "posttrain", "results": {"steps": 60}}, "sft": {"stage": "lab-sft", "results": {"steps": 512}},
        "base": {"stage": "posttrain", "results": {"steps": 9}}, "odd": {"stage": "cache", "results": {"steps": 9}},
        "bool": {"stage": "posttrain", "results": {"steps": True}}, "list": ["posttrain"], "bare": {"stage": "posttrain"},
    }  # fmt: skip
    for name, manifest in manifests.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/manifest.json").write_text("{", encoding="utf-8")
    (tmp_path / "step_000040").mkdir()
    models = {name: tmp_path / name for name in (*manifests, "broken", "absent")}
    models |= {"mid": tmp_path / "step_000040", "rl@step_000012": tmp_path / "rl", "hub": Path("org/name")}
    assert with_recorded({}, models.items(), "base") == {"rl": 60, "sft": 512, "mid": 40}
    assert with_recorded({"rl": 8, "odd": 3}, models.items(), "base") == {"rl": 8, "sft": 512, "mid": 40, "odd": 3}


def test_the_shipped_lab_records_its_steps() -> None:
    lab = Path(__file__).parents[2] / "artifacts/lab/shared-marker"
    assert {name: recorded_step(lab / name) for name in ("rl", "sft", "base")} == {"rl": 60, "sft": 512, "base": None}
