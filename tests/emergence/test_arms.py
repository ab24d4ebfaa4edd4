"""Arms and checkpoints from model names, settings and folders."""

from pathlib import Path
from typing import Any

import pytest

from mechprobe.emergence.arms import all_arms, checkpoint_folders, find_arms, with_checkpoints
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ConfigError


def test_arms_are_read_from_names() -> None:
    names = ["base", "rl@step_000020", "sft", "rl@step_000004", "rl", "other", "sft@step_000002"]
    rl, sft = find_arms(names, EmergenceConfig(final_steps={"rl": 40}))
    assert (rl.name, rl.checkpoints) == ("rl", ("rl@step_000004", "rl@step_000020", "rl"))
    assert (rl.progress, rl.spaced_by) == ((0.0, 0.1, 0.5, 1.0), "steps")
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
